"""Checks with mosquitto_pub, mosquitto_sub and mosquitto_rr of what there is in 5.0 alone."""

import contextlib
import queue
import subprocess
import time

from checks import OTHER_BROKER, SECONDS, V3, V5, expect, expect_within, ours_only, take, wait_until
from mosquitto_client import Subscriber, address, properties, publish, subscribe_and_leave

ALL = [
    ("payload-format-indicator", "1"),
    ("content-type", "text/plain"),
    ("response-topic", "answers/to/it"),
    ("correlation-data", "correlation data"),
    # The order counts, and so do repeated names.
    ("user-property", "b", "1"),
    ("user-property", "a", "2"),
    ("user-property", "b", "3"),
]
ALL_PRINTED = {
    "payload format": "1",
    "content type": "text/plain",
    "response topic": "answers/to/it",
    "correlation data": "correlation data",
    # Each is followed by a space, but for the last.
    "user": "b:1 a:2 b:3",
}


def numbered(first, end):
    return [f"line {number}" for number in range(first, end)]


def publish_lines(version, topic, qos, lines, *arguments):
    text = "".join(f"{line}\n" for line in lines)
    return publish(version, "-t", topic, "-q", str(qos), "-l", *arguments, text=text)


def check_properties():
    """mosquitto_rr asks; the answer is made as its request's properties ask for it."""
    with Subscriber(V5, "-t", "service/add", "-q", "1") as service:
        for qos in range(3):
            expected = {**ALL_PRINTED, "response topic": f"answers/{qos}"}
            asked = properties("publish", *[value for value in ALL if value[0] != "response-topic"])
            caller = subprocess.Popen(
                ["mosquitto_rr", *address(V5), "-q", str(qos), "-t", "service/add", "-e", f"answers/{qos}"]
                + ["-m", "1 2", "-F", "%t %D %p", *asked],
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                request, found = service.message_and_properties()
                expect("request", request, ["service/add", "1 2"])
                expect("properties of the request", found, expected)
                answer = properties("publish", ("correlation-data", found["correlation data"]))
                publish(V5, "-t", found["response topic"], "-q", str(qos), "-m", "3", *answer)
                out, _ = caller.communicate(timeout=SECONDS)
                expect("answer", out, f"answers/{qos} correlation data 3\n")
            finally:
                caller.kill()
                caller.wait()


def check_retain_as_published():
    topic = "as-published/topic"
    arguments = ["-t", topic, "-q", "1"]
    with Subscriber(V5, *arguments) as plain, Subscriber(V5, *arguments, "--retain-as-published") as asking:
        publish(V5, "-t", topic, "-q", "1", "-r", "-m", "kept")
        publish(V5, "-t", topic, "-q", "1", "-m", "passing")
        publish(V5, "-t", topic, "-q", "1", "-r", "-n")
        for client, retain in [(plain, "0"), (asking, "1")]:
            expect("message", client.message(), ["1", retain, topic, "kept"])
            expect("message", client.message(), ["1", "0", topic, "passing"])
            expect("message", client.message(), ["1", retain, topic, ""])


def with_will(client, topic, payload, delay, expiry):
    return Subscriber(
        V5,
        *["-c", "-x", str(expiry), "-i", client, "-t", "will/client"],
        *["--will-topic", topic, "--will-payload", payload, "--will-qos", "1"],
        *properties("will", *ALL, ("will-delay-interval", str(delay))),
    )


def check_will_delay():
    topic = "will/delayed"
    with Subscriber(V5, "-t", topic, "-q", "1") as watcher:
        # Back in time: its will is due before the next one, and must not come.
        with with_will("mosquitto-back", topic, "cancelled", 1, 60) as client:
            client.kill()
        with Subscriber(V5, "-c", "-x", "60", "-i", "mosquitto-back", "-t", "will/client"):
            with with_will("mosquitto-away", topic, "gone", 1, 60) as client:
                aborted = time.monotonic()
                client.kill()
            publish(V5, "-t", topic, "-q", "1", "-m", "first")
            expect("message before the delay is over", watcher.message_and_properties(), ([topic, "first"], {}))
            expect("will", watcher.message_and_properties(), ([topic, "gone"], ALL_PRINTED))
            if not OTHER_BROKER:
                expect_within("seconds of the delay", time.monotonic() - aborted, 1, 11)
        ours_only()
        # The session ends with the connection, and so does the delay.
        with with_will("mosquitto-ended", topic, "gone", 3600, 0) as client:
            client.kill()
        expect("will of an ended session", watcher.message_and_properties(), ([topic, "gone"], ALL_PRINTED))


def check_session_expiry():
    client, topic, other = "mosquitto-expiry", "expiry/topic", "expiry/other"

    def expect_session(expected, *arguments):
        """What is published to the topic goes to the next connection if there is a session, to no one if not."""
        publish(V5, "-t", topic, "-q", "1", "-m", "to the session")
        again = ["-c", "-i", client, "-t", other, "-q", "1", "-C", "2" if expected else "1"]
        with Subscriber(V5, *again, *arguments) as found:
            publish(V5, "-t", other, "-q", "1", "-m", "end")
            if expected:
                expect("message", found.message(), ["1", "0", topic, "to the session"])
            expect("message", found.message(), ["1", "0", other, "end"])
            found.ends()

    subscribe_and_leave(V5, client, topic, 1, "-x", "3600")
    expect_session(True, "-x", "3600")
    # DISCONNECT can change it.
    expect_session(True, "-x", "3600", *properties("disconnect", ("session-expiry-interval", "0")))
    expect_session(False, "-x", "0")
    subscribe_and_leave(V5, client, topic, 1, "-x", "0")
    expect_session(False, "-x", "0")
    # One second; its will, which waits longer, tells when it has ended.
    with Subscriber(V5, "-t", "expiry/will", "-q", "1") as watcher:
        with with_will(client, "expiry/will", "session ended", 3600, 1) as session:
            aborted = time.monotonic()
            session.kill()
        if OTHER_BROKER:
            wait_until(aborted + 4)
        else:
            expect("will", watcher.message(), ["1", "0", "expiry/will", "session ended"])
            expect_within("seconds until the session ended", time.monotonic() - aborted, 1, 11)
    # It was subscribed to will/client.
    with Subscriber(V5, "-c", "-x", "0", "-i", client, "-t", other, "-q", "1") as session:
        publish(V5, "-t", "will/client", "-q", "1", "-m", "to nobody")
        publish(V5, "-t", other, "-q", "1", "-m", "end")
        expect("message", session.message(), ["1", "0", other, "end"])


def check_message_expiry():
    client, topic = "mosquitto-message-expiry", "message-expiry/topic"

    def expires(seconds):
        return properties("publish", ("message-expiry-interval", str(seconds)))

    def expect_remaining(seconds):
        passed = time.monotonic() - before
        expect_within("remaining seconds", int(seconds), 99 - passed, 98)

    with Subscriber(V5, "-t", topic, "-q", "1") as subscriber:
        publish(V5, "-t", topic, "-q", "1", "-m", "live", *expires(100))
        expect("message", subscriber.message_and_properties(), ([topic, "live"], {"expiry": "100"}))
    subscribe_and_leave(V5, client, topic, 1)
    before = time.monotonic()
    publish(V5, "-t", topic, "-q", "1", "-m", "short", *expires(1))
    publish(V5, "-t", topic, "-q", "1", "-m", "long", *expires(100))
    publish(V5, "-t", topic, "-q", "1", "-m", "for ever")
    publish(V5, "-t", "message-expiry/short", "-q", "1", "-r", "-m", "kept", *expires(1))
    publish(V5, "-t", "message-expiry/long", "-q", "1", "-r", "-m", "kept", *expires(100))
    wait_until(time.monotonic() + 2.1)
    with Subscriber(V5, "-c", "-x", "0", "-i", client, "-t", "message-expiry/+", "-q", "1") as subscriber:
        found = [subscriber.packet() for _ in range(3)]
        payloads = {(packet["topic"], packet["payload"]) for packet in found}
        expect("messages", payloads, {(topic, "long"), (topic, "for ever"), ("message-expiry/long", "kept")})
        for packet in found:
            if packet["payload"] == "for ever":
                expect("expiry", packet["expiry"], "")
            else:
                expect_remaining(packet["expiry"])
        publish(V5, "-t", "message-expiry/long", "-q", "1", "-r", "-n")
        expect("message", subscriber.message(), ["1", "0", "message-expiry/long", ""])


def check_alias_to_broker():
    topic = "alias/topic"
    with Subscriber(V5, "-t", topic, "-q", "2") as subscriber:
        for qos in range(3):
            for alias in [1, 10]:
                # The first PUBLISH has topic and alias, the others an empty topic and the alias.
                asked = properties("publish", ("topic-alias", str(alias)))
                out = publish_lines(V5, topic, qos, numbered(0, 20), "-d", *asked)
                expect("packets without topic", out.count("'(null)'"), 19)
                for line in numbered(0, 20):
                    expect("message", subscriber.message(), [str(qos), "0", topic, line])


def check_identifiers():
    client, one, two = "mosquitto-identifiers", "identifier/+/red", "identifier/big/+"

    def arguments(topic, identifier):
        asked = properties("subscribe", ("subscription-identifier", str(identifier))) if identifier else []
        return ["-c", "-x", "60", "-i", client, "-t", topic, "-q", "1", *asked]

    def expect_identifiers(subscriber, pairs):
        for topic, identifier in pairs:
            publish(V5, "-t", topic, "-q", "1", "-m", "red or blue")
            expected = {"identifier": str(identifier)} if identifier else {}
            expect("message", subscriber.message_and_properties(), ([topic, "red or blue"], expected))

    with Subscriber(V5, *arguments(one, 1), "-C", "1") as subscriber:
        expect_identifiers(subscriber, [("identifier/small/red", 1)])
        subscriber.ends()
    with Subscriber(V5, *arguments(two, 268435455), "-C", "2") as subscriber:
        expect_identifiers(subscriber, [("identifier/small/red", 1), ("identifier/big/blue", 268435455)])
        subscriber.ends()
    # The same filter with another identifier, and with none, replaces it.
    for identifier in [7, None]:
        with Subscriber(V5, *arguments(one, identifier), "-C", "2") as subscriber:
            expect_identifiers(subscriber, [("identifier/small/red", identifier), ("identifier/big/blue", 268435455)])
            subscriber.ends()


def check_shared():
    """Members of both versions share the messages, and somebody without a share gets them all."""
    topic = "jobs/mosquitto"
    with contextlib.ExitStack() as stack:

        def member(version, *arguments):
            name = "$share/workers/jobs/+"
            return stack.enter_context(Subscriber(version, "-t", name, "-q", "1", *arguments))

        everything = stack.enter_context(Subscriber(V5, "-t", "jobs/#", "-q", "1"))
        members = [member(version) for version in (V5, V3, V5)]
        lines = numbered(0, 60)
        publish_lines(V5, topic, 1, lines)
        for line in lines:
            expect("message", everything.message(), ["1", "0", topic, line])
        counts = collect(members, topic, lines)
        for number, count in enumerate(counts):
            expect_within(f"messages of member {number}", count, 1, 58)
        ours_only()
        # What is sent to one who is going goes to the others.
        members.pop().kill()
        lines = numbered(60, 100)
        publish_lines(V5, topic, 1, lines)
        for line in lines:
            expect("message", everything.message(), ["1", "0", topic, line])
        collect(members, topic, lines)


def collect(members, topic, lines):
    """Takes these messages, each of which has come to one member, and returns how many came to each."""
    counts = [0] * len(members)
    missing = set(lines)
    deadline = time.monotonic() + SECONDS
    while missing:
        expect("late messages", time.monotonic() < deadline or missing, True)
        for number, member in enumerate(members):
            with contextlib.suppress(queue.Empty):
                while True:
                    packet = member.messages.get(timeout=0.001)
                    member.messages.put(packet)
                    found = member.message()
                    expect("message", [*found[:3], found[3] in missing], ["1", "0", topic, True])
                    missing.remove(found[3])
                    counts[number] += 1
    return counts


def check_shared_absent():
    """With all members away the messages wait for the first who comes back."""
    ours_only()
    share, topic, other = "$share/absent/absent/+", "absent/topic", "present/topic"
    names = [(V5, "mosquitto-absent-1"), (V3, "mosquitto-absent-2")]
    for version, name in names:
        subscribe_and_leave(version, name, share, 1)
    lines = numbered(0, 20)
    publish_lines(V5, topic, 1, lines)
    for version, name in reversed(names):
        with Subscriber(version, "-c", "-i", name, "-t", other, "-q", "1", "-C", str(len(lines) + 1)) as member:
            for line in lines:
                expect("message", member.message(), ["1", "0", topic, line])
            lines = []
            publish(V5, "-t", other, "-q", "1", "-m", "end")
            expect("message", member.message(), ["1", "0", other, "end"])
            member.ends()


def check_receive_maximum():
    """At QoS 2 a message has its room until PUBCOMP; how many have it at once is seen in what mosquitto_sub does."""
    topic = "receive-maximum/topic"
    lines = numbered(0, 100)
    # mosquitto 2.0.11 exceeds any beyond 1.
    for most in [1] if OTHER_BROKER else [1, 2, 7]:
        client = f"mosquitto-receive-maximum-{most}"
        subscribe_and_leave(V5, client, topic, 2)
        publish_lines(V5, topic, 2, lines)
        asked = properties("connect", ("receive-maximum", str(most)))
        subscriber = Subscriber(V5, "-c", "-x", "0", "-i", client, "-t", topic, "-q", "2", *asked)
        try:
            for line in lines:
                expect("message", subscriber.message(), ["2", "0", topic, line])
        finally:
            subscriber.kill()
        open_now = open_most = 0
        for line in iter(subscriber.lines.get, None):
            open_now += ("received PUBLISH" in line) - ("sending PUBCOMP" in line)
            open_most = max(open_most, open_now)
        expect("messages at once", open_most, most)


def check_packet_size():
    topic = "packet-size/topic"
    asked = properties("connect", ("maximum-packet-size", "200"))
    # What remains of it for the payload: type, length of two bytes, topic with its length, packet id, properties.
    most = 200 - (1 + 2 + 2 + len(topic) + 2 + 1)
    # mosquitto 2.0.11 forgets to count one byte.
    too_large = most + 2 if OTHER_BROKER else most + 1
    with Subscriber(V5, "-t", topic, "-q", "2") as control, Subscriber(V5, "-t", topic, "-q", "2", *asked) as client:
        for qos in ["1", "2"]:
            for size in [too_large, most, 10_000, 1]:
                publish(V5, "-t", topic, "-q", qos, "-m", "x" * size)
                expect("length for a client without limit", len(control.message()[3]), size)
            for size in [most, 1]:
                expect("message", client.message(), [qos, "0", topic, "x" * size])


def check_assigned():
    topic = "assigned/topic"

    def name(subscriber):
        # It is called by its name once it has one.
        return subscriber.line("received CONNACK").split()[1]

    first, second = Subscriber(V5, "-t", topic), Subscriber(V5, "-t", topic)
    names = [name(first), name(second)]
    with first, second:
        expect("two names", len(set(names)), 2)
        if not OTHER_BROKER:
            expect("their lengths", [len(name) for name in names], [23, 23])
        with Subscriber(V5, "-i", names[0], "-t", topic, "-E") as taking:
            taking.ends()
        ours_only()
        # The name was the client's.
        expect("first client", first.line("DISCONNECT"), "Received DISCONNECT (142)")


def check_reason_codes():
    topic = "reason/topic"

    def puback(topic):
        lines = publish(V5, "-t", topic, "-q", "1", "-m", "", "-d").splitlines()
        return [line.split("RC:")[1] for line in lines if "received PUBACK" in line]

    expect("PUBACK without subscribers", puback(topic), ["16)"])
    with Subscriber(V5, "-t", topic, "-q", "1"):
        expect("PUBACK", puback(topic), ["0)"])
    expect("PUBACK to a reserved topic", puback("$SYS/topic"), ["135)"])
    ours_only()
    with Subscriber(V5, "-t", topic, "-t", "$share//topic", "-t", "$share/group", "-q", "1") as subscriber:
        expect("SUBACK", subscriber.line("Subscribed"), "Subscribed (mid: 1): 1, 143, 143")
        expect("PUBACK", puback(topic), ["0)"])


def check_both_versions():
    """Each version gets what the other has published; the properties stay with those who know them."""
    wills = ["--will-topic", "versions/will", "--will-payload", "gone", "--will-qos", "1"]
    arguments = ["-t", "versions/#", "-q", "2"]
    with Subscriber(V3, *arguments) as three, Subscriber(V5, *arguments) as five:
        for qos in range(3):
            publish(V3, "-t", "versions/three", "-q", str(qos), "-m", "from 3.1.1")
            publish(V5, "-t", "versions/five", "-q", str(qos), "-m", "from 5.0", *properties("publish", *ALL))
            for subscriber, known in [(three, {}), (five, ALL_PRINTED)]:
                for message, printed in [
                    (["versions/three", "from 3.1.1"], {}),
                    (["versions/five", "from 5.0"], known),
                ]:
                    expect("message", subscriber.message_and_properties(), (message, printed))
        # Retained messages and wills likewise.
        publish(V5, "-t", "versions/retained", "-q", "1", "-r", "-m", "kept", *properties("publish", *ALL))
        with Subscriber(V3, "-t", "versions/retained", "-q", "1") as late:
            expect("retained message", late.message(), ["1", "1", "versions/retained", "kept"])
        publish(V3, "-t", "versions/retained", "-q", "1", "-r", "-n")
        for subscriber in (three, five):
            expect("messages", [subscriber.message()[3], subscriber.message()[3]], ["kept", ""])
        for version in (V3, V5):
            with Subscriber(version, "-t", "will/client", *wills) as client:
                client.kill()
            for subscriber in (three, five):
                expect("will", subscriber.message(), ["1", "0", "versions/will", "gone"])


CHECKS = {
    "properties": check_properties,
    "retain as published": check_retain_as_published,
    "will delay": check_will_delay,
    "session expiry": check_session_expiry,
    "message expiry": check_message_expiry,
    "topic alias to the broker": check_alias_to_broker,
    "subscription identifiers": check_identifiers,
    "shared subscription": check_shared,
    "shared subscription of absent members": check_shared_absent,
    "receive maximum": check_receive_maximum,
    "maximum packet size": check_packet_size,
    "assigned client identifier": check_assigned,
    "reason codes": check_reason_codes,
    "both versions": check_both_versions,
}
