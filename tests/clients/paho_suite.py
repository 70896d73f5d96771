"""Checks with Paho for Python in both protocol versions; those of 5.0 alone are in `paho_five.py`."""

import paho_five
from checks import LARGE, LARGE_SECONDS, OTHER_BROKER, V5, expect, run, take
from paho_client import Client


def check_qos(version, qos):
    topic = f"qos/{qos}"
    payloads = [b"payload %d" % number for number in range(200)]
    with Client(version) as publisher:
        for granted in range(3):
            with Client(version) as subscriber:
                subscriber.subscribe(topic, granted)
                publisher.publish_all(topic, payloads, qos)
                for payload in payloads:
                    expect("message", subscriber.message(), (min(qos, granted), False, topic, payload))


def check_retained(version):
    topic = "retained/topic"
    with Client(version) as publisher:
        for payload in [b"first", b"second"]:
            publisher.publish(topic, payload, 1, retain=True)
            with Client(version) as subscriber:
                subscriber.subscribe("retained/+", 2)
                expect("message", subscriber.message(), (1, True, topic, payload))
        with Client(version) as live:
            live.subscribe("retained/#", 2)
            expect("message", live.message(), (1, True, topic, b"second"))
            publisher.publish(topic, b"", 1, retain=True)
            expect("message to an old subscription", live.message(), (1, False, topic, b""))
        with Client(version) as subscriber:
            subscriber.subscribe("retained/#", 2)
            publisher.publish("retained/end", b"end", 1)
            expect("message", subscriber.message(), (1, False, "retained/end", b"end"))


def check_will(version):
    with Client(version) as watcher:
        watcher.subscribe("will/abrupt", 2)
        client = Client(version, will=("will/abrupt", b"gone", 2, True))
        client.abort()
        expect("message", watcher.message(), (2, False, "will/abrupt", b"gone"))
    with Client(version) as later:
        later.subscribe("will/abrupt", 2)
        expect("retained will", later.message(), (2, True, "will/abrupt", b"gone"))
        later.publish("will/abrupt", b"", 2, retain=True)


def check_no_will(version):
    with Client(version) as watcher:
        watcher.subscribe("will/orderly", 2)
        with Client(version, will=("will/orderly", b"gone", 2, False)):
            pass
        watcher.publish("will/orderly", b"end", 2)
        expect("message", watcher.message(), (2, False, "will/orderly", b"end"))


def check_session(version):
    payloads = [b"payload %d" % number for number in range(500)]
    for qos in [1, 2]:
        client_id, topic = f"paho-session-{version}-{qos}", f"session/{qos}"
        with Client(version, client_id, clean=False) as client:
            expect("session present", client.session_present, False)
            client.subscribe(topic, qos)
        with Client(version) as publisher:
            publisher.publish_all(topic, payloads, qos)
        with Client(version, client_id, clean=False) as client:
            expect("session present", client.session_present, True)
            for payload in payloads:
                expect("message", client.message(), (qos, False, topic, payload))
        with Client(version, client_id, clean=True) as client:
            expect("session present after a clean start", client.session_present, False)


def check_unacknowledged(version):
    """What a client has got and not acknowledged comes again, marked as a duplicate, in the same order."""
    client_id, topic = f"paho-unacknowledged-{version}", "unacknowledged/topic"
    with Client(version) as publisher:
        client = Client(version, client_id, clean=False, manual_ack=True)
        client.subscribe(topic, 1)
        publisher.publish_all(topic, [b"one", b"two", b"three"], 1)
        first = [take(client.messages, "message") for _ in range(3)]
        expect("duplicates", [message.dup for message in first], [False] * 3)
        client.mqtt.ack(first[0].mid, 1)
        # The acknowledgement has arrived once a later packet of the same connection is answered.
        client.subscribe("unacknowledged/other", 1)
        client.abort()
        with Client(version, client_id, clean=False) as client:
            again = [take(client.messages, "message") for _ in range(2)]
            expect("payloads", [message.payload for message in again], [b"two", b"three"])
            expect("duplicates", [message.dup for message in again], [True] * 2)
            expect("packet ids", [message.mid for message in again], [message.mid for message in first[1:]])


def check_takeover(version):
    client_id, topic = f"paho-takeover-{version}", "takeover/topic"
    first = Client(version, client_id, clean=False)
    first.subscribe(topic, 1)
    with Client(version, client_id, clean=False) as second:
        expect("session present", second.session_present, True)
        told, reason = first.disconnected()
        if version == V5 and not OTHER_BROKER:
            expect("DISCONNECT and its reason code", (told, reason), (True, 0x8E))
        second.publish(topic, b"to the second", 1)
        expect("message", second.message(), (1, False, topic, b"to the second"))
        expect("messages to the first", first.messages.qsize(), 0)


def check_large(version):
    topic = "large/topic"
    payload = bytes(range(256)) * (LARGE // 256) + b"end"
    for qos in range(3):
        with Client(version) as publisher, Client(version) as subscriber:
            subscriber.subscribe(topic, qos)
            publisher.publish(topic, payload, qos, seconds=LARGE_SECONDS)
            found = subscriber.message(LARGE_SECONDS)
            expect("message", found[:3], (qos, False, topic))
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
        "unacknowledged": check_unacknowledged,
        "take-over": check_takeover,
        "large payload": check_large,
    },
    paho_five.CHECKS,
)
