"""Checks with mosquitto_pub and mosquitto_sub."""

import queue
import signal
import subprocess
import threading

from checks import HOST, LARGE, LARGE_SECONDS, PORT, SECONDS, expect, run, take

ADDRESS = ["-h", HOST, "-p", str(PORT), "-V", "mqttv311"]


def publish(*arguments, text=None, seconds=SECONDS):
    """Publishes and waits for the end of the acknowledgements."""
    command = ["mosquitto_pub", *ADDRESS, *arguments]
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds)
    expect(f"mosquitto_pub's status ({result.stderr.strip()})", result.returncode, 0)


def subscribe_and_leave(client, topic, qos):
    """Makes a stored session: -E ends the client once its subscription is acknowledged."""
    command = ["mosquitto_sub", *ADDRESS, "-c", "-i", client, "-t", topic, "-q", str(qos), "-E"]
    subprocess.run(command, check=True, timeout=SECONDS)


class Subscriber:
    """mosquitto_sub, its output read line by line: what its debug mode says, and the messages."""

    def __init__(self, *arguments):
        # Unless told, it buffers its output when that is no terminal.
        command = ["stdbuf", "-oL", "mosquitto_sub", *ADDRESS, "-d", "-F", "message %q %r %t %p", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines, self.messages = queue.Queue(), queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            lines = self.messages if line.startswith("message ") else self.lines
            lines.put(line.rstrip("\n"))
        self.lines.put(None)
        self.messages.put(None)

    def __enter__(self):
        self.line("received SUBACK")
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def line(self, word):
        """The next line with this word in it, messages aside."""
        while True:
            line = take(self.lines, f"'{word}' from mosquitto_sub")
            if line is None:
                raise EOFError(f"mosquitto_sub ended without '{word}'")
            if word in line:
                return line

    def message(self, seconds=SECONDS):
        """The next message as [qos, retain, topic, payload]."""
        line = take(self.messages, "message from mosquitto_sub", seconds)
        if line is None:
            raise EOFError("mosquitto_sub ended without a message")
        return line.split(" ", 4)[1:]

    def ends(self):
        expect("mosquitto_sub's status", self.process.wait(SECONDS), 0)


def check_qos(qos):
    topic = f"qos/{qos}"
    lines = [f"line {number}" for number in range(50)]
    for granted in range(3):
        with Subscriber("-t", topic, "-q", str(granted)) as subscriber:
            publish("-t", topic, "-q", str(qos), "-l", text="".join(f"{line}\n" for line in lines))
            for line in lines:
                expect("message", subscriber.message(), [str(min(qos, granted)), "0", topic, line])


def check_retained():
    topic = "retained/topic"
    for payload in ["first", "second"]:
        publish("-t", topic, "-q", "1", "-r", "-m", payload)
        with Subscriber("-t", "retained/+", "-q", "1", "-C", "1") as subscriber:
            expect("message", subscriber.message(), ["1", "1", topic, payload])
            subscriber.ends()
    with Subscriber("-t", "retained/#", "-q", "1") as live:
        expect("message", live.message(), ["1", "1", topic, "second"])
        publish("-t", topic, "-q", "1", "-r", "-n")
        expect("message to an old subscription", live.message(), ["1", "0", topic, ""])
    with Subscriber("-t", "retained/#", "-q", "1") as subscriber:
        publish("-t", "retained/end", "-q", "1", "-m", "end")
        expect("message", subscriber.message(), ["1", "0", "retained/end", "end"])


def with_will(topic, *arguments):
    will = ["--will-topic", topic, "--will-payload", "gone", "--will-qos", "2"]
    return Subscriber("-t", "will/client", *will, *arguments)


def check_will():
    topic = "will/abrupt"
    with Subscriber("-t", topic, "-q", "2") as watcher, with_will(topic) as client:
        client.process.kill()
        expect("message", watcher.message(), ["2", "0", topic, "gone"])


def check_no_will():
    topic = "will/orderly"
    with Subscriber("-t", topic, "-q", "2") as watcher:
        # It disconnects after one message. On a signal it would do so as well, but its handler can hang.
        with with_will(topic, "-C", "1") as client:
            publish("-t", "will/client", "-q", "1", "-m", "go")
            client.line("sending DISCONNECT")
            client.ends()
        publish("-t", topic, "-q", "2", "-m", "end")
        expect("message", watcher.message(), ["2", "0", topic, "end"])


def check_session():
    for qos in [1, 2]:
        client, topic = f"mosquitto-session-{qos}", f"session/{qos}"
        subscribe_and_leave(client, topic, qos)
        # More than may be in flight at once.
        lines = [f"line {number}" for number in range(500)]
        publish("-t", topic, "-q", str(qos), "-l", text="".join(f"{line}\n" for line in lines))
        arguments = ["-c", "-i", client, "-t", topic, "-q", str(qos), "-C", str(len(lines))]
        with Subscriber(*arguments) as subscriber:
            for line in lines:
                expect("message", subscriber.message(), [str(qos), "0", topic, line])
            subscriber.ends()


def check_takeover():
    client, topic = "mosquitto-takeover", "takeover/topic"
    arguments = ["-i", client, "-t", topic, "-q", "1"]
    with Subscriber(*arguments) as first:
        # It would reconnect at once and take the session back.
        first.process.send_signal(signal.SIGSTOP)
        with Subscriber(*arguments, "-C", "1") as second:
            publish("-t", topic, "-q", "1", "-m", "to the second")
            expect("message", second.message(), ["1", "0", topic, "to the second"])
            second.ends()
        first.process.send_signal(signal.SIGCONT)
        # What it says next shows that its connection is gone, and that the message was not sent to it.
        line = first.line(f"Client {client} ")
        expect("first client", line, f"Client {client} sending CONNECT")


def check_large():
    topic = "large/topic"
    payload = ("0123456789abcdef" * (LARGE // 16 + 1))[: LARGE + 3]
    for qos in range(3):
        with Subscriber("-t", topic, "-q", str(qos)) as subscriber:
            publish("-t", topic, "-q", str(qos), "-s", text=payload, seconds=LARGE_SECONDS)
            found = subscriber.message(LARGE_SECONDS)
            expect("message", found[:3], [str(qos), "0", topic])
            expect("length", len(found[3]), len(payload))
            expect("payload is the same", found[3] == payload, True)


run(
    {
        "qos 0": lambda: check_qos(0),
        "qos 1": lambda: check_qos(1),
        "qos 2": lambda: check_qos(2),
        "retained": check_retained,
        "will": check_will,
        "no will after a disconnect": check_no_will,
        "session": check_session,
        "take-over": check_takeover,
        "large payload": check_large,
    }
)
