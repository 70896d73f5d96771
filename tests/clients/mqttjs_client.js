// A client of MQTT.js in either protocol version, its events as queues.

'use strict';

const assert = require('node:assert/strict');
const mqtt = require('mqtt');
const mqttPacket = require('mqtt-packet');

const URL = `mqtt://127.0.0.1:${process.argv[2]}`;
// Set by `run --mosquitto`: what follows from decisions of our own is not asked of another broker.
const OTHER_BROKER = process.env.OTHER_BROKER === '1';
// Nothing on a loopback takes this long; it only bounds the wait for what never comes.
const MILLISECONDS = 20_000;

const V3 = '3.1.1';
const V5 = '5.0';
const LEVELS = { [V3]: 4, [V5]: 5 };

// Ends a check early: the rest of it is for our own broker.
class NotOurs extends Error {}

function oursOnly() {
  if (OTHER_BROKER) throw new NotOurs();
}

function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} within ${MILLISECONDS} ms`)), MILLISECONDS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

// For what depends on the time that has passed, and on nothing else.
function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

function numbered(count) {
  return Array.from({ length: count }, (_, number) => `payload ${number}`);
}

// A queue that can be waited for.
class Queue {
  items = [];
  waiting = [];

  put(item) {
    const waiting = this.waiting.shift();
    if (waiting) waiting(item);
    else this.items.push(item);
  }

  take(what) {
    if (this.items.length > 0) return Promise.resolve(this.items.shift());
    return within(new Promise((resolve) => this.waiting.push(resolve)), what);
  }
}

// Plain objects, which can be compared.
function plain(properties = {}) {
  const found = { ...properties };
  if (found.userProperties) found.userProperties = { ...found.userProperties };
  return found;
}

class Client {
  messages = new Queue();
  // The reason codes of DISCONNECT packets.
  disconnects = new Queue();
  // The PUBLISH packets as they arrive, for a client that is asked to show them.
  arrivals = new Queue();

  // The options are those of MQTT.js. In 5.0 a session that is to stay, asked for by `clean: false`, lasts an hour
  // unless the properties say otherwise.
  static async connect(version, { showArrivals = false, ...options } = {}) {
    const client = new Client();
    if (version === V5 && options.clean === false) {
      options.properties = { sessionExpiryInterval: 3600, ...options.properties };
    }
    client.version = version;
    client.mqtt = mqtt.connect(URL, { reconnectPeriod: 0, protocolVersion: LEVELS[version], ...options });
    client.mqtt.on('message', (topic, payload, packet) => {
      const { qos, retain, properties } = packet;
      client.messages.put({ qos, retain, topic, payload, properties: plain(properties), sentTopic: packet.topic });
    });
    client.mqtt.on('disconnect', (packet) => client.disconnects.put(packet.reasonCode));
    client.closed = new Promise((resolve) => client.mqtt.on('close', resolve));
    if (showArrivals) {
      const parser = mqttPacket.parser({ protocolVersion: LEVELS[version] });
      parser.on('packet', (packet) => {
        if (packet.cmd === 'publish') client.arrivals.put([packet.topic, packet.payload.toString()]);
      });
      client.mqtt.stream.on('data', (bytes) => parser.parse(bytes));
    }
    const connack = await within(
      new Promise((resolve, reject) => {
        client.mqtt.on('connect', resolve);
        // Stays for good: an error without a listener would end the program.
        client.mqtt.on('error', reject);
      }),
      'CONNACK',
    );
    client.sessionPresent = connack.sessionPresent;
    client.properties = plain(connack.properties);
    return client;
  }

  // Subscribes, and expects that it is granted. The options are those of 5.0.
  async subscribe(topic, qos, options = {}) {
    assert.deepEqual(await this.subscribeAll([topic], qos, options), [qos]);
  }

  // Subscribes in one packet, and resolves to the reason codes.
  subscribeAll(topics, qos, options = {}) {
    return within(
      new Promise((resolve, reject) => {
        this.mqtt.subscribe(topics, { qos, ...options }, (error, _, packet) => {
          if (packet) resolve([...packet.granted]);
          else reject(error);
        });
      }),
      'SUBACK',
    );
  }

  // Unsubscribes in one packet, and resolves to the reason codes, which 3.1.1 does not have.
  async unsubscribe(topics) {
    const packet = await within(this.mqtt.unsubscribeAsync(topics), 'UNSUBACK');
    return [...(packet.granted ?? [])];
  }

  // Publishes, and waits for the end of the acknowledgements.
  publish(topic, payload, qos, retain = false, properties = undefined) {
    return within(this.mqtt.publishAsync(topic, payload, { qos, retain, properties }), 'acknowledgement');
  }

  packet() {
    return this.messages.take('message');
  }

  // The next message as QoS, RETAIN, topic and payload.
  async message() {
    const { qos, retain, topic, payload } = await this.packet();
    return [qos, retain, topic, payload.toString()];
  }

  // The next message as topic, payload and properties.
  async messageAndProperties() {
    const { topic, payload, properties } = await this.packet();
    return [topic, payload.toString(), properties];
  }

  // Ends the connection with DISCONNECT; the options, its reason code and properties, are those of 5.0.
  end(options = {}) {
    return within(this.mqtt.endAsync(false, options), 'end');
  }

  // Ends the connection without DISCONNECT.
  async abort() {
    this.mqtt.stream.destroy();
    await within(this.closed, 'close');
    await this.mqtt.endAsync(true);
  }
}

module.exports = { Client, NotOurs, OTHER_BROKER, Queue, V3, V5, numbered, oursOnly, pause, within };
