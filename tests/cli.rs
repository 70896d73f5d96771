//! The program as its user meets it: arguments, exit codes, signals, log lines, the limit on open files.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use broker::codec::QoS;
use broker::codec::packet::{Connect, Protocol};
use support::{Client, PATIENCE, Received, connect, will};

const PROGRAM: &str = env!("CARGO_BIN_EXE_broker");

fn run(arguments: &[&str]) -> Output {
    Command::new(PROGRAM).args(arguments).output().expect("the program can be started")
}

/// A running broker; dropping it ends it.
struct Broker {
    child: Child,
    address: SocketAddr,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Broker {
    /// Starts the program on a free port through a shell, so that limits can be set before.
    fn start(limits: &str, arguments: &str) -> Self {
        let mut child = Command::new("sh")
            .arg("-c")
            .arg(format!("{limits} exec {PROGRAM} -h 127.0.0.1 -p 0 {arguments}"))
            .stderr(Stdio::piped())
            .spawn()
            .expect("a shell can be started");
        let stderr = child.stderr.take().expect("it is piped");
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut broker = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), lines };
        let line = broker.line("listening on ");
        let address = line.rsplit(' ').next().and_then(|text| text.parse().ok());
        broker.address = address.expect("the line ends in the address");
        broker
    }

    /// The next line with this text in it.
    fn line(&self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).unwrap_or_else(|_| panic!("no line says {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it is running");
    }

    fn status_field(&self, name: &str) -> String {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it is running");
        let line = status.lines().find(|line| line.starts_with(name)).expect("Linux tells");
        line.split_whitespace().nth(1).expect("a value").to_owned()
    }

    fn resident_bytes(&self) -> usize {
        self.status_field("VmRSS:").parse::<usize>().expect("a number") * 1024
    }

    /// Ticks of processor time used so far.
    fn cpu_ticks(&self) -> u64 {
        let path = format!("/proc/{}/stat", self.child.id());
        let stat = std::fs::read_to_string(path).expect("it is running");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
        fields[11..13].iter().map(|field| field.parse::<u64>().expect("a number")).sum()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn help_and_version() {
    let help = run(&["--help"]);
    let text = String::from_utf8(help.stdout).expect("text");
    assert!(help.status.success());
    for option in [
        "-p, --port",
        "-h, --host",
        "--session-expiry",
        "--in-flight-max",
        "--receive-max",
        "--redirect-to",
        "--scram-file",
        "[14d]",
        "[268435455]",
    ] {
        assert!(text.contains(option), "{option}");
    }
    let version = run(&["--version"]);
    assert!(version.status.success());
    assert_eq!(String::from_utf8_lossy(&version.stdout), format!("broker {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_is_one_line_and_status_3() {
    for arguments in [
        &["--nonsense"] as &[&str],
        &["-p", "99999"],
        &["-p", "x"],
        &["--in-flight-max", "0"],
        &["--receive-max", "0"],
        &["--topic-alias-max", "65536"],
        &["--keep-alive-max", "1d"],
        &["--redirect-permanently"],
        &["--packet-size-max", "1G"],
        &["stray"],
        &["-h", "no.such.host.invalid"],
    ] {
        let output = run(arguments);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
        assert!(text.starts_with("broker: "), "{text}");
    }
}

#[test]
fn a_port_in_use_is_one_line_and_status_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("it is bound").port().to_string();
    let output = run(&["-q", "-h", "127.0.0.1", "-p", &port]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(&port), "{text}");
}

#[test]
fn signals_log_clients_and_stop_in_order() {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut broker = Broker::start("", "--status-interval 1");
        let mut watcher = Client::connect(broker.address, connect("watcher"));
        watcher.subscribe("w", QoS::AtMostOnce);
        let will = will("w", b"stopped");
        let odd = Connect { protocol: Protocol::Mqtt5, will, ..connect("odd\n\"id\"") };
        let mut client = Client::connect(broker.address, odd);
        let line = broker.line("connected from");
        assert!(
            line.contains("watcher") && line.contains("MQTT 3.1.1") && line.contains("127.0.0.1"),
            "{line}"
        );
        let line = broker.line("connected from");
        assert!(line.contains(r#""odd\n\"id\"""#), "a client id is escaped: {line}");
        assert!(line.contains("MQTT 5.0"), "{line}");
        broker.signal(rustix::process::Signal::USR2);
        assert!(broker.line("2 clients connected").contains("INFO"));
        let line = broker.line("client \"watcher\" at");
        assert!(line.contains("1 subscriptions") && line.contains("keep-alive 0 s"), "{line}");
        assert!(broker.line("clients:").contains("2 connected"));
        assert!(broker.line("messages:").contains("dropped"));
        broker.signal(signal);
        assert!(matches!(watcher.receive(), Received::Publish { payload, .. } if payload == b"stopped"));
        assert_eq!(watcher.receive(), Received::Closed);
        assert_eq!(client.receive(), Received::Other(14), "a client of 5.0 is told");
        assert_eq!(client.receive(), Received::Closed);
        assert!(broker.child.wait().expect("it ends").success());
    }
}

#[test]
fn clients_are_logged_once_each_however_many_they_are() {
    const CLIENTS: usize = 150;
    let broker = Broker::start("", "");
    let client_id = |number: usize| format!("c{number:03}");
    let clients: Vec<Client> =
        (0..CLIENTS).map(|number| Client::connect(broker.address, connect(&client_id(number)))).collect();
    broker.signal(rustix::process::Signal::USR2);
    broker.line("150 clients connected");
    for number in 0..CLIENTS {
        let line = broker.line("client ");
        assert!(line.contains(&format!("client {:?} at", client_id(number))), "{line}");
    }
    drop(clients);
}

#[test]
fn verbose_logs_packets_and_quiet_logs_warnings_only() {
    let broker = Broker::start("", "-v");
    let mut client = Client::connect(broker.address, connect("talker"));
    assert!(broker.line("Connect from").contains("DEBUG"));
    broker.line("Connack to");
    client.subscribe("t", QoS::AtMostOnce);
    client.publish("t", b"hello", false);
    assert!(matches!(client.receive(), Received::Publish { .. }));
    client.ping();
    assert!(broker.line("Publish from").contains("topic \"t\", 5 bytes"));
    assert!(broker.line("Publish to").contains("topic \"t\", 5 bytes"));
    drop(broker);

    // Quiet as it is it does not say where it listens, so the port is chosen before.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("it is bound");
    drop(free);
    let mut child = Command::new(PROGRAM)
        .args(["-q", "-h", "127.0.0.1", "-p", &address.port().to_string()])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program can be started");
    let deadline = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(address).is_err() {
        assert!(Instant::now() < deadline, "it listens in the end");
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it is running");
    assert!(child.wait().expect("it ends").success());
    let mut text = String::new();
    child.stderr.take().expect("it is piped").read_to_string(&mut text).expect("text");
    assert_eq!(text, "");
}

#[test]
fn running_out_of_descriptors_pauses_accepting_and_nothing_spins() {
    let broker = Broker::start("ulimit -n 40;", "");
    let mut served = Vec::new();
    // More than there are descriptors: the system takes these into its backlog.
    let mut waiting: Vec<Client> = (0..60).map(|_| Client::open(broker.address)).collect();
    broker.line("cannot accept");
    let before = broker.cpu_ticks();
    std::thread::sleep(Duration::from_secs(1));
    let spent = broker.cpu_ticks() - before;
    assert!(spent < 20, "{spent} ticks of processor time in a second of nothing");
    for (number, mut client) in waiting.drain(..).enumerate() {
        client.send(&broker::codec::Packet::Connect(connect(&format!("c{number}"))));
        if number < 20 {
            assert_eq!(client.receive(), Received::Other(2), "CONNACK");
            // Its place is for another one.
            drop(client);
        } else {
            served.push(client);
        }
    }
    for client in &mut served[..20] {
        assert_eq!(client.receive(), Received::Other(2), "accepting goes on once descriptors are free");
    }
}

#[test]
fn an_idle_client_costs_little_memory_and_an_idle_broker_no_time() {
    const CLIENTS: usize = 3_000;
    let broker = Broker::start("", "");
    let before = broker.resident_bytes();
    let mut clients = Vec::with_capacity(CLIENTS);
    for number in 0..CLIENTS {
        let protocol = if number % 2 == 0 { Protocol::Mqtt311 } else { Protocol::Mqtt5 };
        let client_id = format!("till-{number:05}");
        let mut client = Client::connect(broker.address, Connect { protocol, ..connect(&client_id) });
        client.subscribe(&format!("till/{number}/orders"), QoS::AtLeastOnce);
        clients.push(client);
    }
    let each = broker.resident_bytes().saturating_sub(before) / CLIENTS;
    assert!(each <= 1_024, "{each} bytes of resident memory for each idle client with a subscription");
    let ticks = broker.cpu_ticks();
    std::thread::sleep(Duration::from_secs(2));
    assert!(broker.cpu_ticks() - ticks <= 2, "an idle broker uses no processor time");
}

#[test]
fn memory_stops_growing_when_the_same_things_happen_again() {
    let broker = Broker::start("", "");
    let mut sizes = Vec::new();
    for round in 0..4 {
        for number in 0..2_500_u32 {
            let client_id = format!("{round}-{number}-{}", number.wrapping_mul(2_654_435_761));
            let mut client =
                Client::connect(broker.address, Connect { will: will("w", b"gone"), ..connect(&client_id) });
            client.subscribe(&format!("a/{client_id}/+"), QoS::AtLeastOnce);
        }
        sizes.push(broker.resident_bytes());
    }
    let growth = sizes[3].saturating_sub(sizes[2]);
    assert!(growth <= 128 * 1024, "resident memory after each round: {sizes:?}");
}
