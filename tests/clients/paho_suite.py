"""Checks with Paho for Python."""

import queue
import socket

import paho.mqtt.client as mqtt

from checks import HOST, LARGE, LARGE_SECONDS, PORT, SECONDS, expect, run, take


class Client:
    """A client with a thread of its own, whose callbacks end in queues."""

    def __init__(self, client_id="", clean=True, will=None, manual_ack=False):
        self.messages, self.connects, self.subscribes, self.publishes, self.disconnects = (
            queue.Queue() for _ in range(5)
        )
        self.mqtt = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=clean,
            reconnect_on_failure=False,
            manual_ack=manual_ack,
        )
        self.mqtt.max_inflight_messages_set(50)
        if will:
            self.mqtt.will_set(*will)
        self.mqtt.on_connect = lambda _c, _u, flags, reason, _p: self.connects.put((flags, reason))
        self.mqtt.on_subscribe = lambda _c, _u, _m, reasons, _p: self.subscribes.put(reasons[0].value)
        self.mqtt.on_publish = lambda _c, _u, mid, _r, _p: self.publishes.put(mid)
        self.mqtt.on_message = lambda _c, _u, message: self.messages.put(message)
        self.mqtt.on_disconnect = lambda _c, _u, _f, reason, _p: self.disconnects.put(reason)
        self.mqtt.connect(HOST, PORT)
        self.mqtt.loop_start()
        flags, reason = take(self.connects, "CONNACK")
        expect("connect", str(reason), "Success")
        self.session_present = flags.session_present

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.mqtt.disconnect()
        self.mqtt.loop_stop()

    def abort(self):
        """Ends the connection without DISCONNECT."""
        self.mqtt.socket().shutdown(socket.SHUT_RDWR)
        take(self.disconnects, "end of the connection")
        self.mqtt.loop_stop()

    def subscribe(self, topic, qos):
        self.mqtt.subscribe(topic, qos)
        expect("granted QoS", take(self.subscribes, "SUBACK"), qos)

    def publish(self, topic, payload, qos, retain=False, seconds=SECONDS):
        self.publish_all(topic, [payload], qos, retain, seconds)

    def publish_all(self, topic, payloads, qos, retain=False, seconds=SECONDS):
        """Publishes, and then waits for all acknowledgements."""
        mids = {self.mqtt.publish(topic, payload, qos, retain).mid for payload in payloads}
        while mids:
            mids.discard(take(self.publishes, f"acknowledgement, {len(mids)} left", seconds))

    def message(self, seconds=SECONDS):
        """The next message as (qos, retain, topic, payload)."""
        message = take(self.messages, "message", seconds)
        return (message.qos, message.retain, message.topic, message.payload)


def check_qos(qos):
    topic = f"qos/{qos}"
    payloads = [b"payload %d" % number for number in range(200)]
    with Client() as publisher:
        for granted in range(3):
            with Client() as subscriber:
                subscriber.subscribe(topic, granted)
                publisher.publish_all(topic, payloads, qos)
                for payload in payloads:
                    expect("message", subscriber.message(), (min(qos, granted), False, topic, payload))


def check_retained():
    topic = "retained/topic"
    with Client() as publisher:
        for payload in [b"first", b"second"]:
            publisher.publish(topic, payload, 1, retain=True)
            with Client() as subscriber:
                subscriber.subscribe("retained/+", 2)
                expect("message", subscriber.message(), (1, True, topic, payload))
        with Client() as live:
            live.subscribe("retained/#", 2)
            expect("message", live.message(), (1, True, topic, b"second"))
            publisher.publish(topic, b"", 1, retain=True)
            expect("message to an old subscription", live.message(), (1, False, topic, b""))
        with Client() as subscriber:
            subscriber.subscribe("retained/#", 2)
            publisher.publish("retained/end", b"end", 1)
            expect("message", subscriber.message(), (1, False, "retained/end", b"end"))


def check_will():
    with Client() as watcher:
        watcher.subscribe("will/abrupt", 2)
        client = Client(will=("will/abrupt", b"gone", 2, True))
        client.abort()
        expect("message", watcher.message(), (2, False, "will/abrupt", b"gone"))
    with Client() as later:
        later.subscribe("will/abrupt", 2)
        expect("retained will", later.message(), (2, True, "will/abrupt", b"gone"))


def check_no_will():
    with Client() as watcher:
        watcher.subscribe("will/orderly", 2)
        with Client(will=("will/orderly", b"gone", 2, False)):
            pass
        watcher.publish("will/orderly", b"end", 2)
        expect("message", watcher.message(), (2, False, "will/orderly", b"end"))


def check_session():
    payloads = [b"payload %d" % number for number in range(500)]
    for qos in [1, 2]:
        client_id, topic = f"paho-session-{qos}", f"session/{qos}"
        with Client(client_id, clean=False) as client:
            expect("session present", client.session_present, False)
            client.subscribe(topic, qos)
        with Client() as publisher:
            publisher.publish_all(topic, payloads, qos)
        with Client(client_id, clean=False) as client:
            expect("session present", client.session_present, True)
            for payload in payloads:
                expect("message", client.message(), (qos, False, topic, payload))
        with Client(client_id, clean=True) as client:
            expect("session present after a clean start", client.session_present, False)


def check_unacknowledged():
    """What a client has got and not acknowledged comes again, marked as a duplicate, in the same order."""
    topic = "unacknowledged/topic"
    with Client() as publisher:
        client = Client("paho-unacknowledged", clean=False, manual_ack=True)
        client.subscribe(topic, 1)
        publisher.publish_all(topic, [b"one", b"two", b"three"], 1)
        first = [take(client.messages, "message") for _ in range(3)]
        expect("duplicates", [message.dup for message in first], [False] * 3)
        client.mqtt.ack(first[0].mid, 1)
        # The acknowledgement has arrived once a later packet of the same connection is answered.
        client.subscribe("unacknowledged/other", 1)
        client.abort()
        with Client("paho-unacknowledged", clean=False) as client:
            again = [take(client.messages, "message") for _ in range(2)]
            expect("payloads", [message.payload for message in again], [b"two", b"three"])
            expect("duplicates", [message.dup for message in again], [True] * 2)
            expect("packet ids", [message.mid for message in again], [message.mid for message in first[1:]])


def check_takeover():
    topic = "takeover/topic"
    first = Client("paho-takeover", clean=False)
    first.subscribe(topic, 1)
    with Client("paho-takeover", clean=False) as second:
        expect("session present", second.session_present, True)
        take(first.disconnects, "end of the first connection")
        first.mqtt.loop_stop()
        second.publish(topic, b"to the second", 1)
        expect("message", second.message(), (1, False, topic, b"to the second"))
        expect("messages to the first", first.messages.qsize(), 0)


def check_large():
    topic = "large/topic"
    payload = bytes(range(256)) * (LARGE // 256) + b"end"
    for qos in range(3):
        with Client() as publisher, Client() as subscriber:
            subscriber.subscribe(topic, qos)
            publisher.publish(topic, payload, qos, seconds=LARGE_SECONDS)
            found = subscriber.message(LARGE_SECONDS)
            expect("message", found[:3], (qos, False, topic))
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
        "unacknowledged": check_unacknowledged,
        "take-over": check_takeover,
        "large payload": check_large,
    }
)
