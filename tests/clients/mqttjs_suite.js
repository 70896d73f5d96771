// Checks with MQTT.js.

'use strict';

const assert = require('node:assert/strict');
const mqtt = require('mqtt');

const URL = `mqtt://127.0.0.1:${process.argv[2]}`;
// Nothing on a loopback takes this long; it only bounds the wait for what never comes.
const MILLISECONDS = 20_000;

function within(promise, what) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} within ${MILLISECONDS} ms`)), MILLISECONDS);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
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

class Client {
  messages = new Queue();

  static async connect(options = {}) {
    const client = new Client();
    client.mqtt = mqtt.connect(URL, { reconnectPeriod: 0, ...options });
    client.mqtt.on('message', (topic, payload, packet) => {
      client.messages.put([packet.qos, packet.retain, topic, payload.toString()]);
    });
    client.closed = new Promise((resolve) => client.mqtt.on('close', resolve));
    const connack = await within(
      new Promise((resolve, reject) => {
        client.mqtt.on('connect', resolve);
        // Stays for good: an error without a listener would end the program.
        client.mqtt.on('error', reject);
      }),
      'CONNACK',
    );
    client.sessionPresent = connack.sessionPresent;
    return client;
  }

  async subscribe(topic, qos) {
    const granted = await within(this.mqtt.subscribeAsync(topic, { qos }), 'SUBACK');
    assert.deepEqual(granted.map((grant) => grant.qos), [qos]);
  }

  publish(topic, payload, qos, retain = false) {
    return within(this.mqtt.publishAsync(topic, payload, { qos, retain }), 'acknowledgement');
  }

  message() {
    return this.messages.take('message');
  }

  end() {
    return within(this.mqtt.endAsync(), 'end');
  }

  // Ends the connection without DISCONNECT.
  async abort() {
    this.mqtt.stream.destroy();
    await within(this.closed, 'close');
    await this.mqtt.endAsync(true);
  }
}

function numbered(count) {
  return Array.from({ length: count }, (_, number) => `payload ${number}`);
}

async function checkQos(qos) {
  const topic = `qos/${qos}`;
  const publisher = await Client.connect();
  for (const granted of [0, 1, 2]) {
    const subscriber = await Client.connect();
    await subscriber.subscribe(topic, granted);
    const payloads = numbered(200);
    await Promise.all(payloads.map((payload) => publisher.publish(topic, payload, qos)));
    for (const payload of payloads) {
      assert.deepEqual(await subscriber.message(), [Math.min(qos, granted), false, topic, payload]);
    }
    await subscriber.end();
  }
  await publisher.end();
}

async function checkRetained() {
  const topic = 'retained/topic';
  const publisher = await Client.connect();
  for (const payload of ['first', 'second']) {
    await publisher.publish(topic, payload, 1, true);
    const subscriber = await Client.connect();
    await subscriber.subscribe('retained/+', 2);
    assert.deepEqual(await subscriber.message(), [1, true, topic, payload]);
    await subscriber.end();
  }
  const live = await Client.connect();
  await live.subscribe('retained/#', 2);
  assert.deepEqual(await live.message(), [1, true, topic, 'second']);
  await publisher.publish(topic, '', 1, true);
  assert.deepEqual(await live.message(), [1, false, topic, '']);
  await live.end();
  const subscriber = await Client.connect();
  await subscriber.subscribe('retained/#', 2);
  await publisher.publish('retained/end', 'end', 1);
  assert.deepEqual(await subscriber.message(), [1, false, 'retained/end', 'end']);
  await subscriber.end();
  await publisher.end();
}

function connectWithWill(topic) {
  return Client.connect({ will: { topic, payload: 'gone', qos: 2, retain: false } });
}

async function checkWill() {
  const topic = 'will/abrupt';
  const watcher = await Client.connect();
  await watcher.subscribe(topic, 2);
  await (await connectWithWill(topic)).abort();
  assert.deepEqual(await watcher.message(), [2, false, topic, 'gone']);
  await watcher.end();
}

async function checkNoWill() {
  const topic = 'will/orderly';
  const watcher = await Client.connect();
  await watcher.subscribe(topic, 2);
  await (await connectWithWill(topic)).end();
  await watcher.publish(topic, 'end', 2);
  assert.deepEqual(await watcher.message(), [2, false, topic, 'end']);
  await watcher.end();
}

async function checkSession() {
  for (const qos of [1, 2]) {
    const topic = `session/${qos}`;
    const options = { clientId: `mqttjs-session-${qos}`, clean: false };
    const before = await Client.connect(options);
    assert.equal(before.sessionPresent, false);
    await before.subscribe(topic, qos);
    await before.end();
    const publisher = await Client.connect();
    // More than may be in flight at once.
    const payloads = numbered(500);
    await Promise.all(payloads.map((payload) => publisher.publish(topic, payload, qos)));
    await publisher.end();
    const after = await Client.connect(options);
    assert.equal(after.sessionPresent, true);
    for (const payload of payloads) {
      assert.deepEqual(await after.message(), [qos, false, topic, payload]);
    }
    await after.end();
    const clean = await Client.connect({ ...options, clean: true });
    assert.equal(clean.sessionPresent, false);
    await clean.end();
  }
}

async function checkTakeover() {
  const topic = 'takeover/topic';
  const options = { clientId: 'mqttjs-takeover', clean: false };
  const first = await Client.connect(options);
  await first.subscribe(topic, 1);
  const second = await Client.connect(options);
  assert.equal(second.sessionPresent, true);
  await within(first.closed, 'close of the first connection');
  await second.publish(topic, 'to the second', 1);
  assert.deepEqual(await second.message(), [1, false, topic, 'to the second']);
  assert.deepEqual(first.messages.items, []);
  await second.end();
}

async function checkConnections() {
  const numbers = Array.from({ length: 1000 }, (_, number) => number);
  const collector = await Client.connect();
  await collector.subscribe('many/up/+', 1);
  const clients = await Promise.all(numbers.map(() => Client.connect()));
  await Promise.all(clients.map((client) => client.subscribe('many/down', 1)));
  await collector.publish('many/down', 'to all', 1);
  for (const client of clients) {
    assert.deepEqual(await client.message(), [1, false, 'many/down', 'to all']);
  }
  await Promise.all(clients.map((client, number) => client.publish(`many/up/${number}`, `${number}`, 1)));
  const found = new Set();
  for (const _ of numbers) found.add((await collector.message())[3]);
  assert.equal(found.size, numbers.length);
  await Promise.all([collector, ...clients].map((client) => client.end()));
}

const CHECKS = {
  'qos 0': () => checkQos(0),
  'qos 1': () => checkQos(1),
  'qos 2': () => checkQos(2),
  retained: checkRetained,
  will: checkWill,
  'no will after a disconnect': checkNoWill,
  session: checkSession,
  'take-over': checkTakeover,
  '1000 connections': checkConnections,
};

async function main() {
  let failed = 0;
  for (const [name, check] of Object.entries(CHECKS)) {
    try {
      await check();
      console.log(`ok ${name}`);
    } catch (error) {
      failed += 1;
      console.error(error);
      console.log(`FAIL ${name}: ${error.message.split(/\s+/).join(' ')}`);
    }
  }
  // Not when all is done: what a failed check left open must not keep the program.
  process.exit(failed ? 1 : 0);
}

main();
