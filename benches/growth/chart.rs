//! Curves over size, as a table and as a drawing: both axes logarithmic, so that what grows like a power is a straight
//! line, and what does not grow is level.
//!
//! Drawings have a white ground, so that they can be read wherever they are shown.

use std::collections::BTreeSet;
use std::error::Error;
use std::io;
use std::path::Path;

use plotters::prelude::*;

use crate::table::Table;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/growth");

const WIDTH: u32 = 640;
const HEIGHT: u32 = 360;

/// Of the width, what the names of the curves take.
const NAMES_WIDTH: u32 = 190;

/// From one name to the next.
const NAME_HEIGHT: i32 = 22;

/// Colours that nearly everybody can tell from each other.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
];

const FONT: (&str, i32) = ("sans-serif", 15);

struct Curve {
    name: String,
    /// Sizes, and nanoseconds.
    points: Vec<(u64, f64)>,
}

/// Curves over the same kind of size.
pub(crate) struct Chart {
    /// Of the file, too.
    name: &'static str,
    title: &'static str,
    /// What there is more and more of.
    sizes_of: &'static str,
    curves: Vec<Curve>,
}

impl Chart {
    pub(crate) fn new(name: &'static str, title: &'static str, sizes_of: &'static str) -> Self {
        Self { name, title, sizes_of, curves: Vec::new() }
    }

    /// Adds a point to the curve with this name.
    pub(crate) fn add(&mut self, curve: &str, size: u64, nanos: f64) {
        match self.curves.iter_mut().find(|known| known.name == curve) {
            Some(known) => known.points.push((size, nanos)),
            None => self.curves.push(Curve { name: curve.to_owned(), points: vec![(size, nanos)] }),
        }
    }

    /// Prints the table, and draws.
    pub(crate) fn publish(&self) -> io::Result<()> {
        println!("\n## {}, by {}\n\n{}", self.title, self.sizes_of, self.table());
        std::fs::create_dir_all(FOLDER)?;
        let path = Path::new(FOLDER).join(self.name).with_extension("svg");
        self.draw(&path).map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
    }

    fn table(&self) -> Table {
        let sizes: BTreeSet<u64> =
            self.curves.iter().flat_map(|curve| &curve.points).map(|(size, _)| *size).collect();
        let heads: Vec<String> = sizes.iter().map(|size| size_text(*size)).collect();
        let heads: Vec<&str> =
            [""].into_iter().chain(heads.iter().map(String::as_str)).chain(["last / first"]).collect();
        let mut table = Table::new(&heads);
        for Curve { name, points } in &self.curves {
            let field = |size: &u64| {
                let point = points.iter().find(|(known, _)| known == size);
                point.map_or(String::new(), |(_, nanos)| time_text(*nanos))
            };
            let growth = points[points.len() - 1].1 / points[0].1;
            let fields = sizes.iter().map(field);
            table.add([name.clone()].into_iter().chain(fields).chain([format!("{growth:.1}")]).collect());
        }
        table
    }

    fn draw(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let (least, most) =
            points().fold((u64::MAX, 0), |(least, most), (size, _)| (least.min(*size), most.max(*size)));
        let (lowest, highest) = points().fold((f64::MAX, 0.0_f64), |(lowest, highest), (_, nanos)| {
            (lowest.min(*nanos), highest.max(*nanos))
        });
        // Whole decades.
        let bottom = 10.0_f64.powf(lowest.log10().floor());
        let top = 10.0_f64.powf(highest.log10().ceil());

        let root = SVGBackend::new(path, (WIDTH, HEIGHT)).into_drawing_area();
        root.fill(&WHITE)?;
        let (left, right) = root.split_horizontally(WIDTH - NAMES_WIDTH);
        let mut chart = ChartBuilder::on(&left)
            .caption(self.title, ("sans-serif", 19))
            .margin(10)
            .x_label_area_size(45)
            .y_label_area_size(65)
            .build_cartesian_2d((least as f64..most as f64).log_scale(), (bottom..top).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(self.sizes_of)
            .y_desc("processor time of each")
            .x_labels(4)
            .y_labels(6)
            .x_label_formatter(&|size| size_text(size.round() as u64))
            .y_label_formatter(&|nanos| time_text(*nanos))
            .label_style(FONT)
            .light_line_style(BLACK.mix(0.06))
            .draw()?;
        for (number, (Curve { name, points }, colour)) in self.curves.iter().zip(COLOURS).enumerate() {
            let style = colour.stroke_width(2);
            let points = points.iter().map(|(size, nanos)| (*size as f64, *nanos));
            chart.draw_series(LineSeries::new(points, style.filled()).point_size(3))?;
            let y = 50 + NAME_HEIGHT * number as i32;
            right.draw(&PathElement::new([(0, y), (18, y)], style))?;
            right.draw(&Text::new(name.as_str(), (24, y - 6), FONT))?;
        }
        root.present()?;
        Ok(())
    }
}

pub(crate) fn size_text(size: u64) -> String {
    match size {
        1_000_000.. => format!("{}M", size / 1_000_000),
        1_000.. => format!("{}k", size / 1_000),
        _ => size.to_string(),
    }
}

/// Three digits that count, and a unit.
pub(crate) fn time_text(nanos: f64) -> String {
    let (value, unit) = match nanos {
        1e9.. => (nanos / 1e9, "s"),
        1e6.. => (nanos / 1e6, "ms"),
        1e3.. => (nanos / 1e3, "µs"),
        _ => (nanos, "ns"),
    };
    let decimals = match value {
        100.0.. => 0,
        10.0.. => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    let text = if decimals > 0 { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text} {unit}")
}
