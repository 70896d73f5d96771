//! The notation for bytes: hexadecimal pairs, `'text'`, `s'text'` with its two-byte length, `( ... )` with its length
//! as a variable byte integer in front, and `*n` to repeat the element before it.

/// Reads the notation.
///
/// # Errors
///
/// What cannot be read, in words.
pub(crate) fn parse(text: &str) -> Result<Vec<u8>, String> {
    let mut characters = text.chars().peekable();
    let bytes = sequence(&mut characters, false)?;
    Ok(bytes)
}

type Characters<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn sequence(characters: &mut Characters<'_>, nested: bool) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut last = 0..0;
    loop {
        let Some(character) = characters.next() else {
            return if nested { Err("a bracket is not closed".to_owned()) } else { Ok(bytes) };
        };
        let begin = bytes.len();
        match character {
            ' ' => continue,
            ')' if nested => return Ok(bytes),
            '(' => {
                let body = sequence(characters, true)?;
                variable_integer(&mut bytes, body.len());
                bytes.extend(body);
            }
            '\'' => bytes.extend(text(characters)?),
            's' => {
                if characters.next() != Some('\'') {
                    return Err("s stands before a text in quotes".to_owned());
                }
                let text = text(characters)?;
                bytes.extend((text.len() as u16).to_be_bytes());
                bytes.extend(text);
            }
            '*' => {
                let mut count = String::new();
                while let Some(digit) = characters.next_if(char::is_ascii_digit) {
                    count.push(digit);
                }
                let count: usize = count.parse().map_err(|_| "* stands before a number".to_owned())?;
                let element = bytes[last.clone()].to_vec();
                bytes.truncate(last.start);
                bytes.extend(element.repeat(count));
                continue;
            }
            high => {
                let digits = (high.to_digit(16), characters.next().and_then(|low| low.to_digit(16)));
                let (Some(high), Some(low)) = digits else {
                    return Err(format!("'{high}' begins no byte"));
                };
                bytes.push((high << 4 | low) as u8);
            }
        }
        last = begin..bytes.len();
    }
}

fn text(characters: &mut Characters<'_>) -> Result<Vec<u8>, String> {
    let mut text = String::new();
    loop {
        match characters.next() {
            Some('\'') => return Ok(text.into_bytes()),
            Some(character) => text.push(character),
            None => return Err("a text is not closed".to_owned()),
        }
    }
}

/// Appends a variable byte integer.
pub(super) fn variable_integer(bytes: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Shows bytes: the beginning of them in hexadecimal and as text.
pub(crate) fn show(bytes: &[u8]) -> String {
    let hex: Vec<String> = bytes.iter().take(48).map(|byte| format!("{byte:02X}")).collect();
    let more = if bytes.len() > 48 { format!(" and {} more", bytes.len() - 48) } else { String::new() };
    format!("{}{more} ({:?})", hex.join(" "), String::from_utf8_lossy(&bytes[..bytes.len().min(48)]))
}

#[test]
fn notation() {
    assert_eq!(parse("30 ( s'a/b' 'x' )").unwrap(), b"\x30\x06\x00\x03a/bx");
    assert_eq!(parse("C0 00*3").unwrap(), [0xC0, 0, 0, 0]);
    assert_eq!(parse("30 ( 00*128 )").unwrap()[..3], [0x30, 0x80, 0x01]);
    assert_eq!(parse("C0 00 ( ) 'ab'*2").unwrap(), b"\xC0\x00\x00abab");
    for wrong in ["0", "zz", "( 00", "'x", "*x"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}
