// Checks with MQTT.js of what there is in 5.0 alone.

'use strict';

const assert = require('node:assert/strict');
const { Client, OTHER_BROKER, Queue, V3, V5, numbered, oursOnly, pause } = require('./mqttjs_client.js');

const ALL = {
  payloadFormatIndicator: true,
  contentType: 'text/plain',
  responseTopic: 'answers/to/it',
  correlationData: Buffer.from('\0\xff binary', 'latin1'),
  // A name with several values is an array; the order of different names is lost in MQTT.js.
  userProperties: { b: ['1', '3'], a: '2' },
};

function assertWithin(what, found, least, most) {
  assert.ok(least <= found && found <= most, `${what}: ${found} instead of ${least} to ${most}`);
}

function seconds() {
  return performance.now() / 1000;
}

function endAll(...clients) {
  return Promise.all(clients.map((client) => client.end()));
}

// A request and its answer, as the request's properties ask for it.
async function checkProperties() {
  const service = await Client.connect(V5);
  const caller = await Client.connect(V5);
  for (const qos of [0, 1, 2]) {
    await service.subscribe('service/add', qos);
    await caller.subscribe('answers/+/it', qos);
    await caller.publish('service/add', '1 2', qos, false, { ...ALL });
    const [topic, payload, properties] = await service.messageAndProperties();
    assert.deepEqual([topic, payload, properties], ['service/add', '1 2', ALL]);
    const answer = { correlationData: properties.correlationData };
    await service.publish(properties.responseTopic, '3', qos, false, { ...answer });
    assert.deepEqual(await caller.messageAndProperties(), ['answers/to/it', '3', answer]);
  }
  await endAll(service, caller);
}

async function checkRetainHandling() {
  const topic = 'retain-handling/topic';
  const client = await Client.connect(V5);
  await client.publish(topic, 'kept', 1, true);
  async function subscribe(rh, expected) {
    await client.subscribe(topic, 1, { rh });
    if (expected) assert.deepEqual(await client.message(), [1, true, topic, 'kept']);
    // Nothing else has come before this one.
    await client.publish(topic, 'end', 1);
    assert.deepEqual(await client.message(), [1, false, topic, 'end']);
  }
  // New, then existing, then new again.
  await subscribe(1, true);
  await subscribe(1, false);
  await subscribe(0, true);
  await subscribe(2, false);
  await client.unsubscribe(topic);
  await subscribe(2, false);
  await client.unsubscribe(topic);
  await subscribe(0, true);
  await client.publish(topic, '', 1, true);
  await client.end();
}

async function checkRetainAsPublished() {
  const topic = 'as-published/topic';
  const [publisher, plain, asking] = [await Client.connect(V5), await Client.connect(V5), await Client.connect(V5)];
  await plain.subscribe(topic, 1);
  await asking.subscribe(topic, 1, { rap: true });
  await publisher.publish(topic, 'kept', 1, true);
  await publisher.publish(topic, 'passing', 1);
  await publisher.publish(topic, '', 1, true);
  for (const [client, retain] of [[plain, false], [asking, true]]) {
    assert.deepEqual(await client.message(), [1, retain, topic, 'kept']);
    assert.deepEqual(await client.message(), [1, false, topic, 'passing']);
    assert.deepEqual(await client.message(), [1, retain, topic, '']);
  }
  await endAll(publisher, plain, asking);
}

async function abortWithWill(clientId, topic, payload, willDelayInterval, sessionExpiryInterval) {
  const will = { topic, payload, qos: 1, retain: false, properties: { ...ALL, willDelayInterval } };
  const client = await Client.connect(V5, { clientId, clean: false, properties: { sessionExpiryInterval }, will });
  const before = seconds();
  await client.abort();
  return before;
}

async function checkWillDelay() {
  const topic = 'will/delayed';
  const watcher = await Client.connect(V5);
  await watcher.subscribe(topic, 1);
  // Back in time: its will is due before the next one, and must not come.
  await abortWithWill('mqttjs-back', topic, 'cancelled', 1, 60);
  const back = await Client.connect(V5, { clientId: 'mqttjs-back', clean: false });
  const aborted = await abortWithWill('mqttjs-away', topic, 'gone', 1, 60);
  await watcher.publish(topic, 'first', 1);
  assert.deepEqual(await watcher.messageAndProperties(), [topic, 'first', {}]);
  assert.deepEqual(await watcher.messageAndProperties(), [topic, 'gone', ALL]);
  if (!OTHER_BROKER) assertWithin('seconds of the delay', seconds() - aborted, 1, 11);
  oursOnly();
  // The session ends with the connection, and so does the delay.
  await abortWithWill('mqttjs-ended', topic, 'gone', 3600, 0);
  assert.deepEqual(await watcher.messageAndProperties(), [topic, 'gone', ALL]);
  await endAll(watcher, back);
}

// DISCONNECT with reason code 4 leaves the will to be published.
async function checkWillAskedFor() {
  const topic = 'will/asked-for';
  const watcher = await Client.connect(V5);
  await watcher.subscribe(topic, 2);
  const client = await Client.connect(V5, { will: { topic, payload: 'gone', qos: 2, retain: false } });
  await client.end({ reasonCode: 4 });
  assert.deepEqual(await watcher.message(), [2, false, topic, 'gone']);
  await watcher.end();
}

async function checkSessionExpiry() {
  const clientId = 'mqttjs-expiry';
  const topic = 'expiry/topic';
  async function session(sessionExpiryInterval, present) {
    const client = await Client.connect(V5, { clientId, clean: false, properties: { sessionExpiryInterval } });
    assert.equal(client.sessionPresent, present, `session present before one of ${sessionExpiryInterval} s`);
    return client;
  }
  await (await session(0, false)).end();
  await (await session(3600, false)).end();
  await (await session(3600, true)).end({ properties: { sessionExpiryInterval: 0 } });
  await (await session(3600, false)).end();
  // From now on it is one second; its will, which waits longer, tells when it has ended.
  const watcher = await Client.connect(V5);
  await watcher.subscribe(topic, 1);
  const aborted = await abortWithWill(clientId, topic, 'session ended', 3600, 1);
  if (OTHER_BROKER) {
    await pause(4000);
  } else {
    assert.deepEqual(await watcher.message(), [1, false, topic, 'session ended']);
    assertWithin('seconds until the session ended', seconds() - aborted, 1, 11);
  }
  await (await session(0, false)).end();
  oursOnly();
  for (const [asked, answered] of [[3600, undefined], [0xffffffff, 14 * 24 * 3600]]) {
    const client = await session(asked, false);
    assert.equal(client.properties.sessionExpiryInterval, answered);
    await client.end({ properties: { sessionExpiryInterval: 0 } });
  }
  await watcher.end();
}

async function checkMessageExpiry() {
  const topic = 'message-expiry/topic';
  const options = { clientId: 'mqttjs-message-expiry', clean: false };
  const expires = (messageExpiryInterval) => ({ messageExpiryInterval });
  const before = await Client.connect(V5, options);
  await before.subscribe(topic, 1);
  await before.publish(topic, 'live', 1, false, expires(100));
  assert.deepEqual(await before.messageAndProperties(), [topic, 'live', expires(100)]);
  await before.end();
  const publisher = await Client.connect(V5);
  const start = seconds();
  await publisher.publish(topic, 'short', 1, false, expires(1));
  await publisher.publish(topic, 'long', 1, false, expires(100));
  await publisher.publish(topic, 'for ever', 1);
  await publisher.publish('message-expiry/short', 'kept', 1, true, expires(1));
  await publisher.publish('message-expiry/long', 'kept', 1, true, expires(100));
  await pause(2100);
  function assertRemaining(properties) {
    assert.deepEqual(Object.keys(properties), ['messageExpiryInterval']);
    assertWithin('remaining seconds', properties.messageExpiryInterval, 99 - (seconds() - start), 98);
  }
  const after = await Client.connect(V5, options);
  const queued = await after.messageAndProperties();
  assert.deepEqual(queued.slice(0, 2), [topic, 'long']);
  assertRemaining(queued[2]);
  assert.deepEqual(await after.messageAndProperties(), [topic, 'for ever', {}]);
  await after.subscribe('message-expiry/+', 1);
  const retained = await after.messageAndProperties();
  assert.deepEqual(retained.slice(0, 2), ['message-expiry/long', 'kept']);
  assertRemaining(retained[2]);
  await after.publish('message-expiry/long', '', 1, true);
  assert.deepEqual(await after.message(), [1, false, 'message-expiry/long', '']);
  await endAll(publisher, after);
}

async function checkAliasToBroker() {
  const subscriber = await Client.connect(V5);
  await subscriber.subscribe('alias/#', 2);
  // By hand.
  const publisher = await Client.connect(V5);
  for (const qos of [0, 1, 2]) {
    // An alias can be given another topic.
    const sent = [['alias/one', 1], ['alias/two', 2], ['', 1], ['', 2], ['alias/three', 1], ['', 1]];
    const topics = ['alias/one', 'alias/two', 'alias/one', 'alias/two', 'alias/three', 'alias/three'];
    for (const [topic, topicAlias] of sent) await publisher.publish(topic, 'by hand', qos, false, { topicAlias });
    for (const topic of topics) assert.deepEqual(await subscriber.message(), [qos, false, topic, 'by hand']);
  }
  await publisher.end();
  // Left to MQTT.js, which uses one alias again once it has none left.
  const automatic = await Client.connect(V5, { autoAssignTopicAlias: true });
  const most = automatic.properties.topicAliasMaximum;
  const sent = [];
  automatic.mqtt.on('packetsend', (packet) => {
    if (packet.cmd === 'publish') sent.push(packet.topic);
  });
  const numbers = Array.from({ length: most + 4 }, (_, number) => number);
  for (const qos of [0, 1, 2]) {
    const rounds = [0, 0, ...numbers, 0, 0];
    for (const number of rounds) await automatic.publish(`alias/${number}`, `${number}`, qos);
    for (const number of rounds) {
      assert.deepEqual(await subscriber.message(), [qos, false, `alias/${number}`, `${number}`]);
    }
  }
  assertWithin('packets without topic', sent.filter((topic) => topic === '').length, 9, sent.length);
  await endAll(automatic, subscriber);
  oursOnly();
  assert.equal(most, 16);
}

async function checkAliasToClient() {
  oursOnly();
  const topics = Array.from({ length: 5 }, (_, number) => `alias-to-client/${number}`);
  const [one, two] = topics;
  const client = await Client.connect(V5, { properties: { topicAliasMaximum: 2 } });
  await client.subscribe('alias-to-client/#', 1);
  for (const [topic, sentTopic, topicAlias] of [[one, one, 1], [two, two, 2], [one, '', 1], [two, '', 2]]) {
    await client.publish(topic, 'payload', 1);
    // MQTT.js puts the topic in for the alias, but the packet shows what was sent.
    const found = await client.packet();
    assert.deepEqual([found.topic, found.sentTopic, found.properties], [topic, sentTopic, { topicAlias }]);
  }
  // There are more topics than aliases.
  for (let round = 0; round < 10; round += 1) {
    for (const topic of topics) await client.publish(topic, 'payload', 1);
    for (const topic of topics) assert.deepEqual(await client.message(), [1, false, topic, 'payload']);
  }
  await client.end();
}

async function checkIdentifiers() {
  const client = await Client.connect(V5);
  function subscribe(topic, subscriptionIdentifier) {
    return client.subscribe(topic, 1, subscriptionIdentifier ? { properties: { subscriptionIdentifier } } : {});
  }
  async function assertIdentifiers(topic, expected) {
    await client.publish(topic, 'payload', 1);
    const [found, , { subscriptionIdentifier = [] }] = await client.messageAndProperties();
    assert.equal(found, topic);
    assert.deepEqual([subscriptionIdentifier].flat().sort(), expected);
  }
  await subscribe('identifier/+/red', 1);
  await subscribe('identifier/big/+', 268435455);
  await subscribe('identifier/none/+');
  await assertIdentifiers('identifier/small/red', [1]);
  await assertIdentifiers('identifier/big/blue', [268435455]);
  await assertIdentifiers('identifier/none/blue', []);
  // The same filter with another identifier, and with none, replaces it.
  await subscribe('identifier/+/red', 7);
  await assertIdentifiers('identifier/small/red', [7]);
  await subscribe('identifier/+/red');
  await assertIdentifiers('identifier/small/red', []);
  await subscribe('identifier/+/red', 1);
  oursOnly();
  // One copy with the identifiers of all that match.
  await assertIdentifiers('identifier/big/red', [1, 268435455]);
  await assertIdentifiers('identifier/none/red', [1]);
  await client.end();
}

async function checkNoLocal() {
  const topic = 'local/topic';
  const client = await Client.connect(V5);
  const other = await Client.connect(V5);
  await client.subscribe(topic, 1, { nl: true });
  await other.subscribe(topic, 1);
  await client.publish(topic, 'from the client', 1);
  await other.publish(topic, 'from the other', 1);
  assert.deepEqual(await client.message(), [1, false, topic, 'from the other']);
  assert.deepEqual(await other.message(), [1, false, topic, 'from the client']);
  assert.deepEqual(await other.message(), [1, false, topic, 'from the other']);
  oursOnly();
  // Without the option it is as in 3.1.1.
  await client.subscribe(topic, 1);
  await client.publish(topic, 'again', 1);
  assert.deepEqual(await client.message(), [1, false, topic, 'again']);
  await endAll(client, other);
}

// Takes these messages, each of which has come to one member, and resolves to how many came to each.
async function collect(members, topic, payloads) {
  const counts = members.map(() => 0);
  const missing = new Set(payloads);
  const deadline = seconds() + 20;
  while (missing.size > 0) {
    assert.ok(seconds() < deadline, `late messages: ${[...missing]}`);
    for (const [number, member] of members.entries()) {
      while (member.messages.items.length > 0) {
        const found = await member.message();
        assert.deepEqual([...found.slice(0, 3), missing.delete(found[3])], [1, false, topic, true]);
        counts[number] += 1;
      }
    }
    await pause(1);
  }
  return counts;
}

// Members of both versions share the messages, and somebody without a share gets them all.
async function checkShared() {
  const share = '$share/workers/jobs/+';
  const topic = 'jobs/mqttjs';
  const publisher = await Client.connect(V5);
  const everything = await Client.connect(V5);
  await everything.subscribe('jobs/#', 1);
  const members = [await Client.connect(V5), await Client.connect(V3), await Client.connect(V5)];
  for (const member of members) await member.subscribe(share, 1);
  async function publish(payloads) {
    await Promise.all(payloads.map((payload) => publisher.publish(topic, payload, 1)));
    for (const payload of payloads) assert.deepEqual(await everything.message(), [1, false, topic, payload]);
    return collect(members, topic, payloads);
  }
  const all = numbered(102);
  for (const [number, count] of (await publish(all.slice(0, 60))).entries()) {
    assertWithin(`messages of member ${number}`, count, 1, 58);
  }
  const leaving = members.pop();
  // Our broker hands on what it sends to one who leaves; for mosquitto it is lost.
  if (OTHER_BROKER) await leaving.unsubscribe(share);
  const left = leaving.end();
  await publish(all.slice(60, 100));
  await left;
  const unsubscribed = members.pop();
  await unsubscribed.unsubscribe(share);
  assert.deepEqual(await publish(all.slice(100)), [2]);
  await endAll(publisher, everything, unsubscribed, ...members);
}

// With all members away the messages wait for the first who comes back.
async function checkSharedAbsent() {
  oursOnly();
  const share = '$share/absent/absent/+';
  const topic = 'absent/topic';
  const names = [[V5, 'mqttjs-absent-1'], [V3, 'mqttjs-absent-2']];
  for (const [version, clientId] of names) {
    const client = await Client.connect(version, { clientId, clean: false });
    await client.subscribe(share, 1);
    await client.end();
  }
  let payloads = numbered(20);
  const publisher = await Client.connect(V5);
  await Promise.all(payloads.map((payload) => publisher.publish(topic, payload, 1)));
  await publisher.end();
  for (const [version, clientId] of names.reverse()) {
    const client = await Client.connect(version, { clientId, clean: false });
    assert.equal(client.sessionPresent, true);
    for (const payload of payloads) assert.deepEqual(await client.message(), [1, false, topic, payload]);
    payloads = [];
    await client.unsubscribe(share);
    assert.deepEqual(client.messages.items, []);
    await client.end();
  }
}

// MQTT.js reads no further than to a message that is not acknowledged yet, so this looks at what arrives.
async function checkReceiveMaximum() {
  const topic = 'receive-maximum/topic';
  const other = 'receive-maximum/other';
  const payloads = numbered(20);
  const publisher = await Client.connect(V5);
  // mosquitto 2.0.11 exceeds any beyond 1.
  for (const receiveMaximum of OTHER_BROKER ? [1] : [1, 2, 7]) {
    const held = new Queue();
    const client = await Client.connect(V5, {
      showArrivals: true,
      properties: { receiveMaximum },
      customHandleAcks: (_topic, _payload, _packet, acknowledge) => held.put(acknowledge),
    });
    await client.subscribe(topic, 1);
    await client.subscribe(other, 0);
    await Promise.all(payloads.map((payload) => publisher.publish(topic, payload, 1)));
    let arrived = 0;
    for (let released = 0; released < payloads.length; released += 1) {
      if (released > 0) (await held.take('message'))(null, 0);
      for (; arrived < Math.min(released + receiveMaximum, payloads.length); arrived += 1) {
        assert.deepEqual(await client.arrivals.take('PUBLISH'), [topic, payloads[arrived]]);
      }
      // QoS 0 needs no room, so it comes at once, and nothing else has come before it.
      await publisher.publish(other, `${released}`, 0);
      assert.deepEqual(await client.arrivals.take('PUBLISH'), [other, `${released}`]);
    }
    (await held.take('message'))(null, 0);
    await client.end();
  }
  await publisher.end();
}

async function checkPacketSize() {
  const topic = 'packet-size/topic';
  // What remains of it for the payload: type, length of two bytes, topic with its length, packet id, properties.
  const most = 200 - (1 + 2 + 2 + topic.length + 2 + 1);
  // mosquitto 2.0.11 forgets to count one byte.
  const tooLarge = OTHER_BROKER ? most + 2 : most + 1;
  const publisher = await Client.connect(V5);
  const control = await Client.connect(V5);
  await control.subscribe(topic, 2);
  const client = await Client.connect(V5, { properties: { maximumPacketSize: 200 } });
  await client.subscribe(topic, 2);
  for (const qos of [1, 2]) {
    for (const size of [tooLarge, most, 10_000, 0]) {
      await publisher.publish(topic, 'x'.repeat(size), qos);
      assert.equal((await control.packet()).payload.length, size);
    }
    for (const size of [most, 0]) assert.deepEqual(await client.message(), [qos, false, topic, 'x'.repeat(size)]);
  }
  await endAll(publisher, control, client);
}

async function checkAssigned() {
  const topic = 'assigned/topic';
  const clients = [await Client.connect(V5, { clientId: '' }), await Client.connect(V5, { clientId: '' })];
  const names = clients.map((client) => client.properties.assignedClientIdentifier);
  assert.equal(new Set(names).size, 2);
  if (!OTHER_BROKER) assert.deepEqual(names.map((name) => name.length), [23, 23]);
  await endAll(...clients);
  // The name is the client's from then on. MQTT.js asks for one with Clean Start alone.
  const before = await Client.connect(V5, { clientId: '', properties: { sessionExpiryInterval: 3600 } });
  const clientId = before.properties.assignedClientIdentifier;
  await before.subscribe(topic, 1);
  await before.end();
  const after = await Client.connect(V5, { clientId, clean: false });
  assert.equal(after.sessionPresent, true);
  assert.equal(after.properties.assignedClientIdentifier, undefined);
  await after.publish(topic, 'payload', 1);
  assert.deepEqual(await after.message(), [1, false, topic, 'payload']);
  await after.end({ properties: { sessionExpiryInterval: 0 } });
}

async function checkReasonCodes() {
  const topic = 'reason/topic';
  const client = await Client.connect(V5);
  const acknowledgements = new Queue();
  client.mqtt.on('packetreceive', ({ cmd, reasonCode = 0 }) => {
    if (['puback', 'pubrec', 'pubcomp'].includes(cmd)) acknowledgements.put([cmd, reasonCode]);
  });
  async function assertCodes(qos, expected) {
    await client.publish(topic, 'payload', qos);
    for (const acknowledgement of expected) {
      assert.deepEqual(await acknowledgements.take('acknowledgement'), acknowledgement);
    }
  }
  await assertCodes(1, [['puback', 0x10]]);
  await assertCodes(2, [['pubrec', OTHER_BROKER ? 0 : 0x10], ['pubcomp', 0]]);
  await client.subscribe(topic, 1);
  await assertCodes(1, [['puback', 0]]);
  await assertCodes(2, [['pubrec', 0], ['pubcomp', 0]]);
  assert.deepEqual(await client.unsubscribe([topic]), [0], 'UNSUBACK');
  await assertCodes(1, [['puback', 0x10]]);
  oursOnly();
  assert.deepEqual(await client.subscribeAll([topic, '$share//topic', '$share/group'], 1), [1, 0x8f, 0x8f]);
  await assertCodes(1, [['puback', 0]]);
  assert.deepEqual(await client.unsubscribe([topic, 'reason/other']), [0, 0x11], 'UNSUBACK');
  await assert.rejects(client.publish('$SYS/topic', 'payload', 1), { code: 0x87 });
  assert.equal(client.properties.receiveMaximum, 1024);
  await client.end();
}

// Each version gets what the other has published; the properties stay with those who know them.
async function checkBothVersions() {
  const three = await Client.connect(V3);
  const five = await Client.connect(V5);
  for (const client of [three, five]) await client.subscribe('versions/+', 2);
  for (const qos of [0, 1, 2]) {
    for (const [publisher, topic, sent] of [[three, 'versions/three', {}], [five, 'versions/five', ALL]]) {
      await publisher.publish(topic, 'payload', qos, false, { ...sent });
      for (const [client, known] of [[three, {}], [five, sent]]) {
        const found = await client.packet();
        assert.deepEqual([found.qos, found.topic, found.payload.toString()], [qos, topic, 'payload']);
        assert.deepEqual(found.properties, known);
      }
    }
  }
  // Retained messages and wills likewise.
  await five.publish('versions/retained', 'kept', 1, true, { ...ALL });
  const late = await Client.connect(V3);
  await late.subscribe('versions/retained', 1);
  assert.deepEqual(await late.message(), [1, true, 'versions/retained', 'kept']);
  await late.publish('versions/retained', '', 1, true);
  for (const client of [three, five]) {
    assert.deepEqual([(await client.message())[3], (await client.message())[3]], ['kept', '']);
  }
  const will = { topic: 'versions/will', payload: 'gone', qos: 1, retain: false };
  for (const version of [V3, V5]) {
    await (await Client.connect(version, { will })).abort();
    for (const client of [three, five]) assert.deepEqual(await client.message(), [1, false, 'versions/will', 'gone']);
  }
  await endAll(three, five, late);
}

module.exports = {
  properties: checkProperties,
  'retain handling': checkRetainHandling,
  'retain as published': checkRetainAsPublished,
  'will delay': checkWillDelay,
  'will asked for': checkWillAskedFor,
  'session expiry': checkSessionExpiry,
  'message expiry': checkMessageExpiry,
  'topic alias to the broker': checkAliasToBroker,
  'topic alias to the client': checkAliasToClient,
  'subscription identifiers': checkIdentifiers,
  'no local': checkNoLocal,
  'shared subscription': checkShared,
  'shared subscription of absent members': checkSharedAbsent,
  'receive maximum': checkReceiveMaximum,
  'maximum packet size': checkPacketSize,
  'assigned client identifier': checkAssigned,
  'reason codes': checkReasonCodes,
  'both versions': checkBothVersions,
};
