"""mosquitto_pub and mosquitto_sub in either protocol version."""

import queue
import subprocess
import threading

from checks import HOST, OTHER_BROKER, PORT, SECONDS, V3, V5, expect, take

NAMES = {V3: "mqttv311", V5: "mqttv5"}

# What mosquitto_sub prints of a message, in this order; of 3.1.1 there is nothing from `alias` to `user`.
FIELDS = {
    "qos": "%q",
    "retain": "%r",
    "topic": "%t",
    "alias": "%A",
    "content type": "%C",
    "correlation data": "%D",
    "expiry": "%E",
    "payload format": "%F",
    "response topic": "%R",
    "identifier": "%S",
    "user": "%P",
    "payload": "%p",
}
FORMAT = "\t".join(["message", *FIELDS.values()])
OF_ALL_VERSIONS = ("qos", "retain", "topic", "payload")


def address(version):
    return ["-h", HOST, "-p", str(PORT), "-V", NAMES[version]]


def properties(packet, *values):
    """The options for the properties of this packet: (name, value) or (user-property, name, value)."""
    return [word for value in values for word in ["-D", packet, *value]]


def publish(version, *arguments, text=None, seconds=SECONDS):
    """Publishes, waits for the end of the acknowledgements, and returns what was printed."""
    command = ["mosquitto_pub", *address(version), *arguments]
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=seconds)
    expect(f"mosquitto_pub's status ({result.stderr.strip()})", result.returncode, 0)
    return result.stdout


def subscribe_and_leave(version, client, topic, qos, *arguments):
    """Makes a stored session: -E ends the client once its subscription is acknowledged."""
    command = ["mosquitto_sub", *address(version), "-c", "-i", client, "-t", topic, "-q", str(qos), "-E", *arguments]
    subprocess.run(command, check=True, timeout=SECONDS)


class Subscriber:
    """mosquitto_sub, its output read line by line: what its debug mode says, and the messages."""

    def __init__(self, version, *arguments):
        if OTHER_BROKER and version == V5 and "receive-maximum" not in arguments:
            # It asks for 20 and keeps to them; mosquitto 2.0.11 does not.
            arguments = [*arguments, *properties("connect", ("receive-maximum", "1000"))]
        # Unless told, it buffers its output when that is no terminal.
        command = ["stdbuf", "-oL", "mosquitto_sub", *address(version), "-d", "-F", FORMAT, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines, self.messages = queue.Queue(), queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            lines = self.messages if line.startswith("message\t") else self.lines
            lines.put(line.rstrip("\n"))
        self.lines.put(None)
        self.messages.put(None)

    def __enter__(self):
        self.line("received SUBACK")
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        """Ends it without DISCONNECT."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def line(self, *words):
        """The next line with one of these words in it, messages aside."""
        while True:
            line = take(self.lines, f"'{words}' from mosquitto_sub")
            if line is None:
                raise EOFError(f"mosquitto_sub ended without '{words}'")
            if any(word in line for word in words):
                return line

    def packet(self, seconds=SECONDS):
        """The next message as its fields by their names."""
        line = take(self.messages, "message from mosquitto_sub", seconds)
        if line is None:
            raise EOFError("mosquitto_sub ended without a message")
        return dict(zip(FIELDS, line.split("\t", len(FIELDS))[1:]))

    def message(self, seconds=SECONDS):
        """The next message as [qos, retain, topic, payload]."""
        packet = self.packet(seconds)
        return [packet[field] for field in OF_ALL_VERSIONS]

    def message_and_properties(self):
        """The next message as [topic, payload], and those of its properties that it has."""
        packet = self.packet()
        found = {field: value for field, value in packet.items() if value and field not in OF_ALL_VERSIONS}
        return [packet["topic"], packet["payload"]], found

    def ends(self):
        expect("mosquitto_sub's status", self.process.wait(SECONDS), 0)
