"""Checks with mosquitto's clients in both protocol versions; those of 5.0 alone are in `mosquitto_five.py`."""

import signal

import mosquitto_five
from checks import LARGE, LARGE_SECONDS, OTHER_BROKER, V5, expect, run
from mosquitto_client import Subscriber, publish, subscribe_and_leave


def check_qos(version, qos):
    topic = f"qos/{qos}"
    lines = [f"line {number}" for number in range(50)]
    for granted in range(3):
        with Subscriber(version, "-t", topic, "-q", str(granted)) as subscriber:
            publish(version, "-t", topic, "-q", str(qos), "-l", text="".join(f"{line}\n" for line in lines))
            for line in lines:
                expect("message", subscriber.message(), [str(min(qos, granted)), "0", topic, line])


def check_retained(version):
    topic = "retained/topic"
    for payload in ["first", "second"]:
        publish(version, "-t", topic, "-q", "1", "-r", "-m", payload)
        with Subscriber(version, "-t", "retained/+", "-q", "1", "-C", "1") as subscriber:
            expect("message", subscriber.message(), ["1", "1", topic, payload])
            subscriber.ends()
    with Subscriber(version, "-t", "retained/#", "-q", "1") as live:
        expect("message", live.message(), ["1", "1", topic, "second"])
        publish(version, "-t", topic, "-q", "1", "-r", "-n")
        expect("message to an old subscription", live.message(), ["1", "0", topic, ""])
    with Subscriber(version, "-t", "retained/#", "-q", "1") as subscriber:
        publish(version, "-t", "retained/end", "-q", "1", "-m", "end")
        expect("message", subscriber.message(), ["1", "0", "retained/end", "end"])


def with_will(version, topic, *arguments):
    will = ["--will-topic", topic, "--will-payload", "gone", "--will-qos", "2"]
    return Subscriber(version, "-t", "will/client", *will, *arguments)


def check_will(version):
    topic = "will/abrupt"
    with Subscriber(version, "-t", topic, "-q", "2") as watcher, with_will(version, topic) as client:
        client.process.kill()
        expect("message", watcher.message(), ["2", "0", topic, "gone"])


def check_no_will(version):
    topic = "will/orderly"
    with Subscriber(version, "-t", topic, "-q", "2") as watcher:
        # It disconnects after one message. On a signal it would do so as well, but its handler can hang.
        with with_will(version, topic, "-C", "1") as client:
            publish(version, "-t", "will/client", "-q", "1", "-m", "go")
            client.line("sending DISCONNECT")
            client.ends()
        publish(version, "-t", topic, "-q", "2", "-m", "end")
        expect("message", watcher.message(), ["2", "0", topic, "end"])


def check_session(version):
    for qos in [1, 2]:
        client, topic = f"mosquitto-session-{version}-{qos}", f"session/{qos}"
        subscribe_and_leave(version, client, topic, qos)
        # More than may be in flight at once.
        lines = [f"line {number}" for number in range(500)]
        publish(version, "-t", topic, "-q", str(qos), "-l", text="".join(f"{line}\n" for line in lines))
        with Subscriber(version, "-c", "-i", client, "-t", topic, "-q", str(qos)) as subscriber:
            for line in lines:
                expect("message", subscriber.message(), [str(qos), "0", topic, line])


def check_takeover(version):
    client, topic = f"mosquitto-takeover-{version}", "takeover/topic"
    arguments = ["-i", client, "-t", topic, "-q", "1"]
    with Subscriber(version, *arguments) as first:
        # It would reconnect at once and take the session back.
        first.process.send_signal(signal.SIGSTOP)
        with Subscriber(version, *arguments, "-C", "1") as second:
            publish(version, "-t", topic, "-q", "1", "-m", "to the second")
            expect("message", second.message(), ["1", "0", topic, "to the second"])
            second.ends()
        first.process.send_signal(signal.SIGCONT)
        # What it says next shows that its connection is gone, and that the message was not sent to it.
        if version == V5 and not OTHER_BROKER:
            line = first.line(f"Client {client} ", "DISCONNECT")
            expect("first client", line, "Received DISCONNECT (142)")
        else:
            line = first.line(f"Client {client} ")
            expect("first client", line, f"Client {client} sending CONNECT")


def check_large(version):
    topic = "large/topic"
    payload = ("0123456789abcdef" * (LARGE // 16 + 1))[: LARGE + 3]
    for qos in range(3):
        with Subscriber(version, "-t", topic, "-q", str(qos)) as subscriber:
            publish(version, "-t", topic, "-q", str(qos), "-s", text=payload, seconds=LARGE_SECONDS)
            found = subscriber.message(LARGE_SECONDS)
            expect("message", found[:3], [str(qos), "0", topic])
            expect("length", len(found[3]), len(payload))
            expect("payload is the same", found[3] == payload, True)


run(
    {
        "qos 0": lambda version: check_qos(version, 0),
        "qos 1": lambda version: check_qos(version, 1),
        "qos 2": lambda version: check_qos(version, 2),
        "retained": check_retained,
        "will": check_will,
        "no will after a disconnect": check_no_will,
        "session": check_session,
        "take-over": check_takeover,
        "large payload": check_large,
    },
    mosquitto_five.CHECKS,
)
