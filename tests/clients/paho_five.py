"""Checks with Paho for Python of what there is in 5.0 alone."""

import time

from checks import OTHER_BROKER, V3, V5, expect, expect_within, ours_only, take, wait_until
from paho_client import Client, values_of

ALL = {
    "PayloadFormatIndicator": 1,
    "ContentType": "text/plain",
    "ResponseTopic": "answers/to/it",
    "CorrelationData": b"\0\xff binary",
    # The order counts, and so do repeated names.
    "UserProperty": [("b", "1"), ("a", "2"), ("b", "3"), ("", "")],
}


def check_properties():
    """A request and its answer, as the request's properties ask for it."""
    with Client(V5) as service, Client(V5) as caller:
        for qos in range(3):
            service.subscribe("service/add", qos)
            caller.subscribe("answers/+/it", qos)
            caller.publish("service/add", b"1 2", qos, **ALL)
            request, properties = service.message_and_properties()
            expect("request", request, ("service/add", b"1 2"))
            expect("properties of the request", properties, ALL)
            answer = {"CorrelationData": properties["CorrelationData"]}
            service.publish(properties["ResponseTopic"], b"3", qos, **answer)
            expect("answer", caller.message_and_properties(), (("answers/to/it", b"3"), answer))


def check_retain_handling():
    topic = "retain-handling/topic"
    with Client(V5) as client:
        client.publish(topic, b"kept", 1, retain=True)

        def subscribe(handling, expected):
            client.subscribe(topic, 1, retainHandling=handling)
            if expected:
                expect("retained message", client.message(), (1, True, topic, b"kept"))
            # Nothing else has come before this one.
            client.publish(topic, b"end", 1)
            expect("message", client.message(), (1, False, topic, b"end"))

        # New, then existing, then new again.
        subscribe(1, expected=True)
        subscribe(1, expected=False)
        subscribe(0, expected=True)
        subscribe(2, expected=False)
        client.unsubscribe([topic])
        subscribe(2, expected=False)
        client.unsubscribe([topic])
        subscribe(0, expected=True)
        client.publish(topic, b"", 1, retain=True)


def check_retain_as_published():
    topic = "as-published/topic"
    with Client(V5) as publisher, Client(V5) as plain, Client(V5) as asking:
        plain.subscribe(topic, 1)
        asking.subscribe(topic, 1, retainAsPublished=True)
        publisher.publish(topic, b"kept", 1, retain=True)
        publisher.publish(topic, b"passing", 1)
        publisher.publish(topic, b"", 1, retain=True)
        for client, retain in [(plain, False), (asking, True)]:
            expect("message", client.message(), (1, retain, topic, b"kept"))
            expect("message", client.message(), (1, False, topic, b"passing"))
            expect("message", client.message(), (1, retain, topic, b""))


def check_will_delay():
    topic = "will/delayed"
    will = (topic, b"gone", 1, False)
    properties = ALL | {"WillDelayInterval": 1}
    with Client(V5) as watcher:
        watcher.subscribe(topic, 1)
        # Back in time: its will is due before the next one, and must not come.
        Client(V5, "paho-back", False, (topic, b"cancelled", 1, False), will_properties=properties).abort()
        with Client(V5, "paho-back", clean=False):
            aborted = time.monotonic()
            Client(V5, "paho-away", False, will, will_properties=properties).abort()
            watcher.publish(topic, b"first", 1)
            expect("message before the delay is over", watcher.message_and_properties(), ((topic, b"first"), {}))
            expect("will", watcher.message_and_properties(), ((topic, b"gone"), ALL))
            if not OTHER_BROKER:
                expect_within("seconds of the delay", time.monotonic() - aborted, 1, 11)
        ours_only()
        # The session ends with the connection, and so does the delay.
        ended = {"SessionExpiryInterval": 0}
        Client(V5, "paho-ended", False, will, properties=ended, will_properties={"WillDelayInterval": 3600}).abort()
        expect("will of an ended session", watcher.message_and_properties(), ((topic, b"gone"), {}))


def check_will_asked_for():
    """DISCONNECT with reason code 4 leaves the will to be published."""
    topic = "will/asked-for"
    with Client(V5) as watcher:
        watcher.subscribe(topic, 2)
        client = Client(V5, will=(topic, b"gone", 2, False))
        client.disconnect("Disconnect with will message")
        expect("will", watcher.message(), (2, False, topic, b"gone"))


def check_session_expiry():
    client_id, topic = "paho-expiry", "expiry/topic"

    def session(expiry, present, **options):
        client = Client(V5, client_id, False, properties={"SessionExpiryInterval": expiry}, **options)
        expect(f"session present before one of {expiry} s", client.session_present, present)
        return client

    session(0, False).disconnect()
    session(3600, False).disconnect()
    session(3600, True).disconnect(SessionExpiryInterval=0)
    session(3600, False).disconnect()
    # From now on it is one second; its will, which waits longer, tells when it has ended.
    will = {"will": (topic, b"session ended", 1, False), "will_properties": {"WillDelayInterval": 3600}}
    with Client(V5) as watcher:
        watcher.subscribe(topic, 1)
        aborted = time.monotonic()
        session(1, True, **will).abort()
        if OTHER_BROKER:
            wait_until(aborted + 4)
        else:
            expect("will", watcher.message(), (1, False, topic, b"session ended"))
            expect_within("seconds until the session ended", time.monotonic() - aborted, 1, 11)
        session(0, False).disconnect()
    ours_only()
    for asked, answered in [(3600, None), (0xFFFFFFFF, 14 * 24 * 3600)]:
        with session(asked, False) as client:
            expect("session expiry in CONNACK", client.properties.get("SessionExpiryInterval"), answered)
            client.disconnect(SessionExpiryInterval=0)


def check_message_expiry():
    topic = "message-expiry/topic"
    with Client(V5, "paho-message-expiry", clean=False) as client:
        client.subscribe(topic, 1)
        client.publish(topic, b"live", 1, MessageExpiryInterval=100)
        expect("properties", client.message_and_properties()[1], {"MessageExpiryInterval": 100})
    with Client(V5) as publisher:
        before = time.monotonic()
        publisher.publish(topic, b"short", 1, MessageExpiryInterval=1)
        publisher.publish(topic, b"long", 1, MessageExpiryInterval=100)
        publisher.publish(topic, b"for ever", 1)
        publisher.publish("message-expiry/short", b"kept", 1, retain=True, MessageExpiryInterval=1)
        publisher.publish("message-expiry/long", b"kept", 1, retain=True, MessageExpiryInterval=100)
        wait_until(time.monotonic() + 2.1)

    def expect_remaining(properties):
        expect("properties", list(properties), ["MessageExpiryInterval"])
        passed = time.monotonic() - before
        expect_within("remaining seconds", properties["MessageExpiryInterval"], 99 - passed, 98)

    with Client(V5, "paho-message-expiry", clean=False) as client:
        message, properties = client.message_and_properties()
        expect("message", message, (topic, b"long"))
        expect_remaining(properties)
        expect("message", client.message_and_properties(), ((topic, b"for ever"), {}))
        client.subscribe("message-expiry/+", 1)
        message, properties = client.message_and_properties()
        expect("retained message", message, ("message-expiry/long", b"kept"))
        expect_remaining(properties)
        client.publish("message-expiry/long", b"", 1, retain=True)
        expect("message", client.message(), (1, False, "message-expiry/long", b""))


def check_alias_to_broker():
    with Client(V5) as publisher, Client(V5) as subscriber:
        subscriber.subscribe("alias/#", 2)
        for qos in range(3):
            publisher.publish("alias/one", b"1", qos, TopicAlias=1)
            publisher.publish("alias/two", b"2", qos, TopicAlias=2)
            publisher.publish("", b"3", qos, TopicAlias=1)
            publisher.publish("", b"4", qos, TopicAlias=2)
            # An alias can be given another topic.
            publisher.publish("alias/three", b"5", qos, TopicAlias=1)
            publisher.publish("", b"6", qos, TopicAlias=1)
            topics = ["alias/one", "alias/two", "alias/one", "alias/two", "alias/three", "alias/three"]
            for number, topic in enumerate(topics, 1):
                expect("message", subscriber.message(), (qos, False, topic, b"%d" % number))
    most = publisher.properties["TopicAliasMaximum"]
    client = Client(V5)
    client.publish("alias/most", b"", 1, TopicAlias=most)
    client.disconnect()
    client = Client(V5)
    client.publish("alias/beyond", b"", 0, TopicAlias=most + 1)
    expect("DISCONNECT and its reason code", client.disconnected(), (True, 0x94))
    ours_only()
    expect("topic alias maximum", most, 16)


def check_alias_to_client():
    """Paho does not put the topic in for the alias: what is seen here is what the broker has sent."""
    ours_only()
    topics = [f"alias-to-client/{number}" for number in range(5)]
    one, two = topics[:2]
    with Client(V5, properties={"TopicAliasMaximum": 2}) as client:
        client.subscribe("alias-to-client/#", 1)
        for topic, sent, alias in [(one, one, 1), (two, two, 2), (one, "", 1), (two, "", 2)]:
            client.publish(topic, b"", 1)
            expect("message", client.message_and_properties(), ((sent, b""), {"TopicAlias": alias}))
        # With more topics than aliases each is still to be told from what has come.
        known = {1: one, 2: two}
        for topic in topics * 10:
            client.publish(topic, b"", 1)
            (sent, _), properties = client.message_and_properties()
            alias = properties.get("TopicAlias")
            expect("alias", alias in (None, 1, 2), True)
            if sent and alias:
                known[alias] = sent
            expect("topic", sent or known[alias], topic)
    with Client(V5) as client:
        client.subscribe("alias-to-client/#", 1)
        for _ in range(2):
            client.publish(one, b"", 1)
            expect("without aliases", client.message_and_properties(), ((one, b""), {}))


def check_identifiers():
    with Client(V5) as client:
        client.subscribe("identifier/+/red", 1, identifier=1)
        client.subscribe("identifier/big/+", 1, identifier=268435455)
        client.subscribe("identifier/none/+", 1)
        for topic, identifiers in [
            ("identifier/small/red", {"SubscriptionIdentifier": [1]}),
            ("identifier/big/blue", {"SubscriptionIdentifier": [268435455]}),
            ("identifier/none/blue", {}),
        ]:
            client.publish(topic, b"", 1)
            expect("message", client.message_and_properties(), ((topic, b""), identifiers))
        # The same filter with another identifier, and with none, replaces it.
        for identifier, expected in [(7, {"SubscriptionIdentifier": [7]}), (None, {})]:
            client.subscribe("identifier/+/red", 1, identifier=identifier)
            client.publish("identifier/small/red", b"", 1)
            expect("message", client.message_and_properties()[1], expected)
        client.subscribe("identifier/+/red", 1, identifier=1)
        ours_only()
        # One copy with the identifiers of all that match.
        client.publish("identifier/big/red", b"overlapping", 1)
        client.publish("identifier/none/red", b"overlapping", 1)
        for expected in [[1, 268435455], [1]]:
            _, properties = client.message_and_properties()
            expect("identifiers", sorted(properties["SubscriptionIdentifier"]), expected)


def check_no_local():
    topic = "local/topic"
    with Client(V5) as client, Client(V5) as other:
        client.subscribe(topic, 1, noLocal=True)
        other.subscribe(topic, 1)
        client.publish(topic, b"from the client", 1)
        other.publish(topic, b"from the other", 1)
        expect("message", client.message(), (1, False, topic, b"from the other"))
        expect("message", other.message(), (1, False, topic, b"from the client"))
        expect("message", other.message(), (1, False, topic, b"from the other"))
        ours_only()
        # Without the option it is as in 3.1.1.
        client.subscribe(topic, 1)
        client.publish(topic, b"again", 1)
        expect("message", client.message(), (1, False, topic, b"again"))


def check_shared():
    """Members of both versions share the messages, and somebody without a share gets them all."""
    share, topic = "$share/workers/jobs/+", "jobs/paho"
    with Client(V5) as publisher, Client(V5) as everything:
        members = [Client(version) for version in (V5, V3, V5)]
        everything.subscribe("jobs/#", 1)
        for member in members:
            member.subscribe(share, 1)

        def publish(payloads, members):
            publisher.publish_all(topic, payloads, 1)
            for payload in payloads:
                expect("message", everything.message(), (1, False, topic, payload))
            return collect(members, topic, payloads)

        for number, count in enumerate(publish([b"%d" % number for number in range(60)], members)):
            expect_within(f"messages of member {number}", count, 1, 58)
        leaving = members.pop()
        if OTHER_BROKER:
            # Our broker hands on what it sends to one who leaves; for mosquitto it is lost.
            leaving.unsubscribe([share])
        leaving.disconnect()
        publish([b"%d" % number for number in range(60, 100)], members)
        members.pop().unsubscribe([share])
        expect("messages of the last member", publish([b"100", b"101"], members), [2])
        ours_only()
        # What one has not acknowledged when it leaves goes to another.
        holder = Client(V5, manual_ack=True)
        holder.subscribe(share, 1)
        payloads = [b"%d" % number for number in range(102, 112)]
        held, _ = publish(payloads, [holder, *members])
        expect_within("messages held", held, 1, 9)
        holder.disconnect()
        again = {members[0].message()[3] for _ in range(held)}
        expect("messages again", (len(again), again < set(payloads)), (held, True))
        members.pop().disconnect()


def collect(members, topic, payloads):
    """Takes these messages, each of which has come to one member, and returns how many came to each."""
    counts = [0] * len(members)
    missing = set(payloads)
    deadline = time.monotonic() + 20
    while missing:
        expect("late messages", time.monotonic() < deadline or missing, True)
        for number, member in enumerate(members):
            while not member.messages.empty():
                qos, retain, found, payload = member.message()
                expect("message", (qos, retain, found, payload in missing), (1, False, topic, True))
                missing.remove(payload)
                counts[number] += 1
        time.sleep(0.001)
    return counts


def check_shared_absent():
    """With all members away the messages wait for the first who comes back."""
    ours_only()
    share, topic = "$share/absent/absent/+", "absent/topic"
    names = [(V5, "paho-absent-1"), (V3, "paho-absent-2")]
    for version, name in names:
        with Client(version, name, clean=False) as client:
            client.subscribe(share, 1)
    payloads = [b"%d" % number for number in range(20)]
    with Client(V5) as publisher:
        publisher.publish_all(topic, payloads, 1)
    for version, name in reversed(names):
        with Client(version, name, clean=False) as client:
            expect("session present", client.session_present, True)
            for payload in payloads:
                expect("message", client.message(), (1, False, topic, payload))
            payloads = []
            client.unsubscribe([share])


def check_receive_maximum():
    topic, other = "receive-maximum/topic", "receive-maximum/other"
    payloads = [b"%d" % number for number in range(20)]
    with Client(V5) as publisher:
        # mosquitto 2.0.11 exceeds any beyond 1.
        for most in [1] if OTHER_BROKER else [1, 2, 7]:
            with Client(V5, manual_ack=True, properties={"ReceiveMaximum": most}) as client:
                client.subscribe(topic, 1)
                client.subscribe(other, 0)
                publisher.publish_all(topic, payloads, 1)
                held = []
                for released in range(len(payloads)):
                    if released:
                        client.mqtt.ack(held.pop(0), 1)
                    while len(held) < min(most, len(payloads) - released):
                        message = client.packet()
                        expect("message", (message.topic, message.payload), (topic, payloads[released + len(held)]))
                        held.append(message.mid)
                    # QoS 0 needs no room, so it comes at once, and nothing else has come before it.
                    publisher.publish(other, b"%d" % released, 0)
                    expect("message", client.message(), (0, False, other, b"%d" % released))


def check_packet_size():
    topic = "packet-size/topic"
    with Client(V5) as publisher, Client(V5) as control:
        control.subscribe(topic, 2)
        # What remains of it for the payload: type, length of two bytes, topic with its length, packet id, properties.
        most = 200 - (1 + 2 + 2 + len(topic) + 2 + 1)
        # mosquitto 2.0.11 forgets to count one byte.
        too_large = most + 2 if OTHER_BROKER else most + 1
        with Client(V5, properties={"MaximumPacketSize": 200}) as client:
            client.subscribe(topic, 2)
            for qos in [1, 2]:
                for size in [too_large, most, 10_000, 0]:
                    publisher.publish(topic, b"x" * size, qos)
                    expect("length for a client without limit", len(control.message()[3]), size)
                for size in [most, 0]:
                    expect("message", client.message(), (qos, False, topic, b"x" * size))


def check_assigned():
    topic = "assigned/topic"
    with Client(V5) as first, Client(V5) as second:
        names = [client.properties["AssignedClientIdentifier"] for client in (first, second)]
        expect("two names", len(set(names)), 2)
        if not OTHER_BROKER:
            expect("their lengths", [len(name) for name in names], [23, 23])
    # The name is the client's from then on.
    client = Client(V5, clean=False)
    client_id = client.properties["AssignedClientIdentifier"]
    client.subscribe(topic, 1)
    client.disconnect()
    with Client(V5, client_id, clean=False) as client:
        expect("session present", client.session_present, True)
        expect("properties", "AssignedClientIdentifier" in client.properties, False)
        client.publish(topic, b"", 1)
        expect("message", client.message(), (1, False, topic, b""))
        client.disconnect(SessionExpiryInterval=0)


def check_reason_codes():
    topic = "reason/topic"
    with Client(V5) as client:
        expect("PUBACK without subscribers", client.publish(topic, b"", 1), 0x10)
        client.subscribe(topic, 1)
        expect("PUBACK", client.publish(topic, b"", 1), 0)
        expect("PUBCOMP", client.publish(topic, b"", 2), 0)
        expect("UNSUBACK", client.unsubscribe([topic]), [0])
        expect("PUBACK after UNSUBSCRIBE", client.publish(topic, b"", 1), 0x10)
        ours_only()
        expect("SUBACK", client.subscribe_all([topic, "$share//topic", "$share/group"], 1), [1, 0x8F, 0x8F])
        expect("PUBACK", client.publish(topic, b"", 1), 0)
        expect("UNSUBACK", client.unsubscribe([topic, "reason/other"]), [0, 0x11])
        expect("PUBACK to a reserved topic", client.publish("$SYS/topic", b"", 1), 0x87)
        expect("receive maximum", client.properties["ReceiveMaximum"], 1024)


def check_both_versions():
    """Each version gets what the other has published; the properties stay with those who know them."""
    with Client(V3) as three, Client(V5) as five:
        for client in (three, five):
            client.subscribe("versions/+", 2)
        for qos in range(3):
            for publisher, topic, properties in [(three, "versions/three", {}), (five, "versions/five", ALL)]:
                publisher.publish(topic, b"payload", qos, **properties)
                for client, known in [(three, {}), (five, properties)]:
                    packet = client.packet()
                    expect("message", (packet.qos, packet.topic, packet.payload), (qos, topic, b"payload"))
                    expect("properties", values_of(packet.properties), known)
        # Retained messages and wills likewise.
        five.publish("versions/retained", b"kept", 1, retain=True, **ALL)
        with Client(V3) as late:
            late.subscribe("versions/retained", 1)
            expect("retained message", late.message(), (1, True, "versions/retained", b"kept"))
            late.publish("versions/retained", b"", 1, retain=True)
        for client in (three, five):
            expect("messages", [client.message()[3], client.message()[3]], [b"kept", b""])
        for version in (V3, V5):
            Client(version, will=("versions/will", b"gone", 1, False)).abort()
            for client in (three, five):
                expect("will", client.message(), (1, False, "versions/will", b"gone"))


CHECKS = {
    "properties": check_properties,
    "retain handling": check_retain_handling,
    "retain as published": check_retain_as_published,
    "will delay": check_will_delay,
    "will asked for": check_will_asked_for,
    "session expiry": check_session_expiry,
    "message expiry": check_message_expiry,
    "topic alias to the broker": check_alias_to_broker,
    "topic alias to the client": check_alias_to_client,
    "subscription identifiers": check_identifiers,
    "no local": check_no_local,
    "shared subscription": check_shared,
    "shared subscription of absent members": check_shared_absent,
    "receive maximum": check_receive_maximum,
    "maximum packet size": check_packet_size,
    "assigned client identifier": check_assigned,
    "reason codes": check_reason_codes,
    "both versions": check_both_versions,
}
