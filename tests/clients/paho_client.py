"""A client of Paho for Python in either protocol version, its callbacks as queues."""

import queue
import socket

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from checks import HOST, PORT, SECONDS, V5, expect, take

PROTOCOLS = {"3.1.1": mqtt.MQTTv311, "5.0": mqtt.MQTTv5}


def properties_of(packet_type, values):
    """Paho's object for the properties with these names and values, or nothing if there are none."""
    if not values:
        return None
    properties = Properties(packet_type)
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def values_of(properties):
    """The names and values in Paho's object; a message of 3.1.1 has no such object."""
    if properties is None:
        return {}
    hidden = ("packetType", "types", "names", "properties")
    return {name: value for name, value in vars(properties).items() if name not in hidden}


class Client:
    """A client with a thread of its own.

    A session that is to stay is asked for by `clean=False`; in 5.0 it lasts an hour unless `properties`, those of the
    CONNECT, say otherwise. `will` is topic, payload, QoS and retain.
    """

    def __init__(
        self, version, client_id="", clean=True, will=None, manual_ack=False, properties=None, will_properties=None
    ):
        self.version = version
        self.messages, self.connects, self.subscribes, self.unsubscribes, self.publishes, self.disconnects = (
            queue.Queue() for _ in range(6)
        )
        five = version == V5
        self.mqtt = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if five else clean,
            protocol=PROTOCOLS[version],
            reconnect_on_failure=False,
            manual_ack=manual_ack,
        )
        self.mqtt.max_inflight_messages_set(50)
        if will:
            self.mqtt.will_set(*will, properties=properties_of(PacketTypes.WILLMESSAGE, will_properties))
        self.mqtt.on_connect = lambda _c, _u, flags, reason, found: self.connects.put((flags, reason, found))
        self.mqtt.on_subscribe = lambda _c, _u, _m, reasons, _p: self.subscribes.put([r.value for r in reasons])
        self.mqtt.on_unsubscribe = lambda _c, _u, _m, reasons, _p: self.unsubscribes.put([r.value for r in reasons])
        self.mqtt.on_publish = lambda _c, _u, mid, reason, _p: self.publishes.put((mid, reason.value))
        self.mqtt.on_message = lambda _c, _u, message: self.messages.put(message)
        self.mqtt.on_disconnect = lambda _c, _u, flags, reason, _p: self.disconnects.put(
            (flags.is_disconnect_packet_from_server, reason.value)
        )
        if five:
            asked = properties or {} if clean else {"SessionExpiryInterval": 3600} | (properties or {})
            self.mqtt.connect(HOST, PORT, clean_start=clean, properties=properties_of(PacketTypes.CONNECT, asked))
        else:
            self.mqtt.connect(HOST, PORT)
        self.mqtt.loop_start()
        flags, reason, found = take(self.connects, "CONNACK")
        expect("connect", str(reason), "Success")
        self.session_present = flags.session_present
        self.properties = values_of(found)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.disconnect()

    def disconnect(self, reason=None, **properties):
        """Ends the connection with DISCONNECT; a reason by its name and properties are for 5.0."""
        packet_type = PacketTypes.DISCONNECT
        reason = reason and ReasonCode(packet_type, reason)
        self.mqtt.disconnect(reason, properties_of(packet_type, properties))
        self.mqtt.loop_stop()

    def abort(self):
        """Ends the connection without DISCONNECT."""
        self.mqtt.socket().shutdown(socket.SHUT_RDWR)
        take(self.disconnects, "end of the connection")
        self.mqtt.loop_stop()

    def disconnected(self):
        """Waits for the end of the connection: whether DISCONNECT has come, and its reason code."""
        found = take(self.disconnects, "end of the connection")
        self.mqtt.loop_stop()
        return found

    def subscribe(self, topic, qos, identifier=None, **options):
        """Subscribes, and expects that it is granted. The options and the subscription identifier are for 5.0."""
        expect("granted QoS", self.subscribe_all([topic], qos, identifier, **options), [qos])

    def subscribe_all(self, topics, qos, identifier=None, **options):
        """Subscribes in one packet, and returns the reason codes."""
        if self.version == V5:
            properties = identifier and properties_of(PacketTypes.SUBSCRIBE, {"SubscriptionIdentifier": identifier})
            asked = [(topic, SubscribeOptions(qos, **options)) for topic in topics]
            self.mqtt.subscribe(asked, properties=properties)
        else:
            self.mqtt.subscribe([(topic, qos) for topic in topics])
        return take(self.subscribes, "SUBACK")

    def unsubscribe(self, topics):
        """Unsubscribes in one packet, and returns the reason codes, which 3.1.1 does not have."""
        self.mqtt.unsubscribe(topics)
        return take(self.unsubscribes, "UNSUBACK")

    def publish(self, topic, payload, qos, retain=False, seconds=SECONDS, **properties):
        """Publishes, waits for the end of the acknowledgements, and returns the reason code of the last."""
        found = properties_of(PacketTypes.PUBLISH, properties)
        mid = self.mqtt.publish(topic, payload, qos, retain, found).mid
        acknowledged, reason = take(self.publishes, "acknowledgement", seconds)
        expect("packet id", acknowledged, mid)
        return reason

    def publish_all(self, topic, payloads, qos):
        """Publishes, and then waits for all acknowledgements."""
        mids = {self.mqtt.publish(topic, payload, qos).mid for payload in payloads}
        while mids:
            mids.discard(take(self.publishes, f"acknowledgement, {len(mids)} left")[0])

    def packet(self, seconds=SECONDS):
        """The next message as Paho has it."""
        return take(self.messages, "message", seconds)

    def message(self, seconds=SECONDS):
        """The next message as (qos, retain, topic, payload)."""
        message = self.packet(seconds)
        return (message.qos, message.retain, message.topic, message.payload)

    def message_and_properties(self):
        """The next message as (topic, payload), and its properties by their names."""
        message = self.packet()
        return (message.topic, message.payload), values_of(message.properties)
