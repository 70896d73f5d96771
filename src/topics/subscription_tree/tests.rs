//! The tree against a list of subscriptions that is searched from end to end.

use std::collections::BTreeMap;

use super::*;

/// Enough for every text here.
const LEVELS_MAX: u32 = 1 << 16;

/// A small generator of numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    fn qos(&mut self) -> QoS {
        QoS::new(self.below(3) as u8).unwrap()
    }

    /// Half of the grants are what 3.1.1 asks for; identifiers are few, so that they repeat.
    fn grant(&mut self) -> Grant {
        let plain = Grant::from(self.qos());
        if self.below(2) == 0 {
            return plain;
        }
        Grant {
            no_local: self.below(3) == 0,
            retain_as_published: self.below(3) == 0,
            subscription_id: NonZeroU32::new(self.below(4) as u32),
            ..plain
        }
    }

    fn pick<'a>(&mut self, texts: &'a [String]) -> &'a str {
        &texts[self.below(texts.len())]
    }
}

/// All texts of one to `depth` of these levels, but the empty one.
fn texts(levels: &[&str], depth: usize) -> Vec<String> {
    let mut all: Vec<String> = levels.iter().map(|level| (*level).to_owned()).collect();
    let mut longest = all.clone();
    for _ in 1..depth {
        longest = longest
            .iter()
            .flat_map(|text| levels.iter().map(move |level| format!("{text}/{level}")))
            .collect();
        all.extend(longest.iter().cloned());
    }
    all.retain(|text| !text.is_empty());
    all
}

/// Those of the texts that are filters.
fn filters(levels: &[&str], depth: usize) -> Vec<String> {
    let mut all = texts(levels, depth);
    all.retain(|text| TopicFilter::parse(text, LEVELS_MAX).is_ok());
    all
}

fn filter(text: &str) -> TopicFilter<'_> {
    TopicFilter::parse(text, LEVELS_MAX).unwrap()
}

fn name(text: &str) -> TopicName<'_> {
    TopicName::parse(text, LEVELS_MAX).unwrap()
}

fn matched_in_order(tree: &mut SubscriptionTree, topic: &str) -> Vec<(u32, QoS)> {
    let matches = tree.matches(name(topic));
    let found = matches.iter().map(|subscriber| (subscriber.id.0, subscriber.qos)).collect();
    tree.put_back(matches);
    found
}

/// What all matching subscriptions of one subscriber grant together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    qos: QoS,
    retain_as_published: bool,
    /// Whether one of them is plain.
    plain: bool,
    /// Those that are not, sorted.
    others: Vec<(Option<NonZeroU32>, bool, QoS, bool)>,
}

impl Found {
    fn of(grants: impl IntoIterator<Item = Grant>) -> Self {
        let mut found = Self::default();
        for grant in grants {
            let Grant { qos, no_local, retain_as_published, subscription_id } = grant;
            found.qos = found.qos.max(qos);
            found.retain_as_published |= retain_as_published;
            if grant.is_plain() {
                found.plain = true;
            } else {
                found.others.push((subscription_id, no_local, qos, retain_as_published));
            }
        }
        found.others.sort_unstable();
        found
    }
}

/// What a subscriber of a match was granted: one by one, or merged.
fn grants(matches: &Matches, subscriber: Subscriber) -> Vec<Grant> {
    if subscriber.is_detailed() {
        return matches.grants(subscriber).collect();
    }
    let Subscriber { qos, retain_as_published, .. } = subscriber;
    vec![Grant { qos, retain_as_published, ..Grant::default() }]
}

fn matched(tree: &mut SubscriptionTree, topic: &str) -> BTreeMap<u32, Found> {
    let matches = tree.matches(name(topic));
    let all = found_in(&matches);
    tree.put_back(matches);
    all
}

fn found_in(matches: &Matches) -> BTreeMap<u32, Found> {
    let mut all = BTreeMap::new();
    for subscriber in matches.iter() {
        let found = Found::of(grants(matches, subscriber));
        assert_eq!(found.qos, subscriber.qos);
        assert_eq!(found.retain_as_published, subscriber.retain_as_published);
        assert!(all.insert(subscriber.id.0, found).is_none(), "each subscriber once");
    }
    all
}

/// Subscribers, each with its subscriptions in order.
#[derive(Default)]
struct Model(BTreeMap<u32, Vec<(String, Grant)>>);

impl Model {
    fn subscribe(&mut self, subscriber: u32, filter: &str, grant: impl Into<Grant>) -> Option<Grant> {
        let grant = grant.into();
        let list = self.0.entry(subscriber).or_default();
        if let Some((_, present)) = list.iter_mut().find(|(text, _)| text == filter) {
            return Some(std::mem::replace(present, grant));
        }
        list.push((filter.to_owned(), grant));
        None
    }

    fn unsubscribe(&mut self, subscriber: u32, filter: &str) -> bool {
        let list = self.0.entry(subscriber).or_default();
        let len = list.len();
        list.retain(|(text, _)| text != filter);
        list.len() < len
    }

    fn remove_some(&mut self, subscriber: u32, at_most: usize) -> bool {
        let list = self.0.entry(subscriber).or_default();
        list.drain(..at_most.min(list.len()));
        list.is_empty()
    }

    fn matched(&self, topic: &str) -> BTreeMap<u32, Found> {
        let matching = |list: &[(String, Grant)]| -> Vec<Grant> {
            let matching = list.iter().filter(|(text, _)| filter(text).matches(name(topic)));
            matching.map(|(_, grant)| *grant).collect()
        };
        let all = self.0.iter().map(|(id, list)| (*id, matching(list)));
        all.filter(|(_, grants)| !grants.is_empty()).map(|(id, grants)| (id, Found::of(grants))).collect()
    }

    fn check(&self, tree: &SubscriptionTree) {
        tree.check_invariants();
        assert_eq!(tree.len(), self.0.values().map(Vec::len).sum::<usize>());
        for (id, list) in &self.0 {
            let id = SubscriberId(*id);
            let in_tree: Vec<(String, Grant)> =
                tree.subscriptions(id).map(|(text, grant)| (text.to_owned(), grant)).collect();
            assert_eq!(in_tree, *list, "in the order of subscribing");
            assert_eq!(tree.subscription_count(id) as usize, list.len());
        }
    }
}

#[test]
fn records_are_small() {
    assert_eq!(size_of::<Option<Subscription>>(), 32);
    assert_eq!(size_of::<Subscriber>(), 12);
    assert_eq!(size_of::<Option<Filter>>(), 16);
    assert_eq!(size_of::<Hashed>(), 8);
}

#[test]
fn every_small_filter_against_every_small_topic() {
    // [MQTT-3.3.2-3] [MQTT-3.3.5-1] [MQTT-4.7.2-1]
    let topics = texts(&["a", "b", "", "$x"], 4);
    let mut tree = SubscriptionTree::new(1);
    let mut model = Model::default();
    for (number, text) in filters(&["a", "", "+", "#", "$x"], 4).iter().enumerate() {
        // Each filter has a subscriber of its own and one of a few who have many.
        for subscriber in [number as u32, 1_000 + number as u32 % 7] {
            let qos = QoS::new((number % 3) as u8).unwrap();
            tree.subscribe(SubscriberId(subscriber), filter(text), qos);
            model.subscribe(subscriber, text, qos);
        }
    }
    model.check(&tree);
    for topic in &topics {
        assert_eq!(matched(&mut tree, topic), model.matched(topic), "{topic}");
    }
}

#[test]
fn random_changes_never_leave_a_stale_match() {
    let topics = texts(&["a", "b", "$"], 2);
    let filters = filters(&["a", "b", "+", "#", "$"], 2);
    for seed in 1..=20 {
        let mut random = Random(seed);
        let mut tree = SubscriptionTree::new(seed);
        let mut model = Model::default();
        // Lists that are still lent while subscriptions change, one of them for ever.
        let mut lent = Vec::new();
        for _ in 0..500 {
            let subscriber = random.below(40) as u32;
            let id = SubscriberId(subscriber);
            let text = random.pick(&filters);
            match random.below(20) {
                0..=13 => {
                    let grant = random.grant();
                    let previous = tree.subscribe(id, filter(text), grant);
                    assert_eq!(previous, model.subscribe(subscriber, text, grant));
                    assert!(tree.contains(id, text));
                }
                14..=17 => {
                    assert_eq!(tree.unsubscribe(id, text), model.unsubscribe(subscriber, text));
                    assert!(!tree.contains(id, text));
                }
                18 => {
                    let at_most = random.below(4);
                    assert_eq!(tree.remove_some(id, at_most), model.remove_some(subscriber, at_most));
                }
                _ => {
                    tree.remove_subscriber(id);
                    model.remove_some(subscriber, usize::MAX);
                }
            }
            for _ in 0..3 {
                let topic = random.pick(&topics);
                assert_eq!(matched(&mut tree, topic), model.matched(topic), "seed {seed}: {topic}");
            }
            if random.below(4) == 0 {
                lent.push(tree.matches(name(random.pick(&topics))));
            }
            if lent.len() > 3 {
                tree.put_back(lent.swap_remove(random.below(4)));
            }
            if random.below(10) == 0 {
                model.check(&tree);
            }
        }
        for subscriber in 0..40 {
            tree.remove_subscriber(SubscriberId(subscriber));
        }
        assert!(tree.is_empty());
        assert_eq!((tree.filters.len(), tree.by_hash.len(), tree.by_owner.len()), (0, 0, 0));
        tree.check_invariants();
    }
}

#[test]
fn the_order_of_a_match_does_not_depend_on_the_seed() {
    let lists: Vec<Vec<(u32, Vec<Grant>)>> = (0..20)
        .map(|seed| {
            let mut tree = SubscriptionTree::new(seed);
            let mut random = Random(7);
            for text in filters(&["a", "b", "+", "#"], 3) {
                for _ in 0..3 {
                    tree.subscribe(SubscriberId(random.below(50) as u32), filter(&text), random.grant());
                }
            }
            let matches = tree.matches(name("a/b/a"));
            matches.iter().map(|subscriber| (subscriber.id.0, grants(&matches, subscriber))).collect()
        })
        .collect();
    assert!(lists[0].len() > 20);
    assert!(lists[0].iter().any(|(_, grants)| grants.len() > 2));
    assert!(lists.iter().all(|list| *list == lists[0]));
}

#[test]
fn the_exact_filter_comes_first_and_the_oldest_subscription_of_a_filter() {
    let mut tree = SubscriptionTree::new(1);
    for (subscriber, text) in
        [(5, "a/+"), (3, "#"), (9, "a/b"), (1, "a/b"), (4, "a/b"), (5, "a/b"), (2, "a/+")]
    {
        tree.subscribe(SubscriberId(subscriber), filter(text), QoS::AtMostOnce);
    }
    // A change of the QoS keeps the place.
    tree.subscribe(SubscriberId(9), filter("a/b"), QoS::AtLeastOnce);
    tree.unsubscribe(SubscriberId(1), "a/b");
    let order: Vec<u32> = matched_in_order(&mut tree, "a/b").iter().map(|(id, _)| *id).collect();
    assert_eq!(order, [9, 4, 5, 3, 2]);
}

#[test]
fn a_long_list_comes_and_goes() {
    let mut tree = SubscriptionTree::new(1);
    let mut model = Model::default();
    let mut random = Random(3);
    for step in 0..4_000 {
        // Around the lengths at which the index comes and goes, then far beyond them.
        let subscriber = random.below(if step < 2_000 { 24 } else { 500 }) as u32;
        if random.below(2) == 0 {
            model.unsubscribe(subscriber, "news/all");
            tree.unsubscribe(SubscriberId(subscriber), "news/all");
        } else {
            let grant = random.grant();
            let previous = tree.subscribe(SubscriberId(subscriber), filter("news/all"), grant);
            assert_eq!(previous, model.subscribe(subscriber, "news/all", grant));
        }
        if step % 50 == 0 {
            model.check(&tree);
            assert_eq!(matched(&mut tree, "news/all"), model.matched("news/all"));
        }
    }
}

#[test]
fn texts_of_any_length_come_and_go() {
    let mut tree = SubscriptionTree::new(1);
    let mut model = Model::default();
    let mut random = Random(11);
    for step in 0..6_000 {
        let subscriber = random.below(3) as u32;
        // A few long ones, and so many short ones that chunks fill and empty.
        let number = random.below(2_500);
        let length = if number.is_multiple_of(97) { number * 26 } else { number % 60 };
        let text = format!("{number}/{}", "x".repeat(length));
        if random.below(5 - 3 * usize::from(step > 3_000)) == 0 {
            assert_eq!(tree.remove_some(SubscriberId(subscriber), 20), model.remove_some(subscriber, 20));
        } else {
            tree.subscribe(SubscriberId(subscriber), filter(&text), QoS::AtMostOnce);
            model.subscribe(subscriber, &text, QoS::AtMostOnce);
        }
        if step % 200 == 0 {
            model.check(&tree);
        }
    }
    for subscriber in 0..3 {
        tree.remove_subscriber(SubscriberId(subscriber));
    }
    tree.check_invariants();
}

#[test]
fn a_list_lent_during_a_change_is_not_kept() {
    let mut tree = SubscriptionTree::new(1);
    for (subscriber, text) in [(0, "a/b"), (1, "a/+"), (2, "#"), (3, "a/b")] {
        // Once with the list not known before, once with it.
        for _ in 0..2 {
            let matches = tree.matches(name("a/b"));
            tree.subscribe(SubscriberId(subscriber), filter(text), QoS::AtMostOnce);
            tree.put_back(matches);
            assert_eq!(matched(&mut tree, "a/b").len(), subscriber as usize + 1);
            let matches = tree.matches(name("a/b"));
            assert_eq!(matches.len(), subscriber as usize + 1);
            tree.unsubscribe(SubscriberId(subscriber), text);
            tree.put_back(matches);
            assert_eq!(matched(&mut tree, "a/b").len(), subscriber as usize);
        }
        tree.subscribe(SubscriberId(subscriber), filter(text), QoS::AtMostOnce);
    }
    tree.check_invariants();
}

/// A grant at QoS 1 that names its subscription.
fn named(subscription_id: u32) -> Grant {
    Grant { subscription_id: NonZeroU32::new(subscription_id), ..Grant::from(QoS::AtLeastOnce) }
}

fn no_local(qos: QoS) -> Grant {
    Grant { no_local: true, ..Grant::from(qos) }
}

/// The grants of one subscriber for a topic, in the order in which the match has them.
fn granted(tree: &mut SubscriptionTree, topic: &str, subscriber: u32) -> Vec<Grant> {
    let matches = tree.matches(name(topic));
    let found = matches.iter().find(|found| found.id == SubscriberId(subscriber));
    let granted = grants(&matches, found.expect("it matches"));
    tree.put_back(matches);
    granted
}

#[test]
fn a_grant_is_replaced_in_its_place() {
    // [MQTT5-3.8.4-3]
    let mut tree = SubscriptionTree::new(1);
    let id = SubscriberId(1);
    for (text, grant) in [("a/b", named(1)), ("a/+", named(2)), ("c", named(3))] {
        assert_eq!(tree.subscribe(id, filter(text), grant), None);
    }
    let mut before = named(1);
    for after in [
        named(4),
        no_local(QoS::ExactlyOnce),
        Grant { retain_as_published: true, ..Grant::from(QoS::AtMostOnce) },
        Grant::from(QoS::AtMostOnce),
        Grant::from(QoS::AtLeastOnce),
        named(1),
    ] {
        assert_eq!(tree.subscribe(id, filter("a/b"), after), Some(before));
        assert_eq!(granted(&mut tree, "a/b", 1), [after, named(2)]);
        assert_eq!(granted(&mut tree, "a/c", 1), [named(2)]);
        let all: Vec<(&str, Grant)> = tree.subscriptions(id).collect();
        assert_eq!(all, [("a/b", after), ("a/+", named(2)), ("c", named(3))]);
        tree.check_invariants();
        before = after;
    }
    assert_eq!(tree.subscribe(id, filter("a/b"), named(1)), Some(named(1)));
    assert_eq!(tree.subscription_count(id), 3);
}

#[test]
fn every_matching_subscription_is_named_and_no_other() {
    // [MQTT5-3.3.4-3] [MQTT5-3.3.4-4]
    let mut tree = SubscriptionTree::new(1);
    // The same identifiers in another order, so that those of one client never stand for those of the other.
    let texts = ["#", "a/#", "a/+", "+/b", "+/+", "a/b", "b/#", "a", "a/b/c", "+"];
    for (number, text) in (1..).zip(texts) {
        tree.subscribe(SubscriberId(0), filter(text), named(number));
        tree.subscribe(SubscriberId(1), filter(text), named(100 - number));
    }
    tree.subscribe(SubscriberId(2), filter("a/b"), named(7));
    tree.subscribe(SubscriberId(2), filter("#"), named(7));
    for _ in 0..2 {
        for subscriber in 0..2 {
            let granted = granted(&mut tree, "a/b", subscriber);
            let mut ids: Vec<u32> = granted
                .iter()
                .map(|grant| grant.subscription_id.map_or(0, NonZeroU32::get))
                .map(|number| if subscriber == 0 { number } else { 100 - number })
                .collect();
            assert_eq!(ids[0], 6, "that of the exact filter comes first");
            ids.sort_unstable();
            assert_eq!(ids, [1, 2, 3, 4, 5, 6]);
        }
        assert_eq!(granted(&mut tree, "a/b", 2), [named(7), named(7)], "one identifier for two");
    }
    tree.unsubscribe(SubscriberId(0), "a/b");
    tree.unsubscribe(SubscriberId(0), "#");
    assert_eq!(granted(&mut tree, "a/b", 0).len(), 4);
}

#[test]
fn grants_without_names_may_be_merged_and_those_with_no_local_are_not() {
    // [MQTT5-3.8.3-3]
    let mut tree = SubscriptionTree::new(1);
    let as_published = Grant { retain_as_published: true, ..Grant::default() };
    for (text, grant) in [
        ("a/b", Grant::from(QoS::AtLeastOnce)),
        ("a/+", as_published),
        ("a/#", no_local(QoS::ExactlyOnce)),
        ("c/+", as_published),
        ("c/#", Grant::from(QoS::ExactlyOnce)),
        ("d", no_local(QoS::AtLeastOnce)),
    ] {
        tree.subscribe(SubscriberId(0), filter(text), grant);
    }
    for _ in 0..2 {
        let found = Found::of(granted(&mut tree, "a/b", 0));
        assert_eq!((found.qos, found.retain_as_published, found.plain), (QoS::ExactlyOnce, true, true));
        assert_eq!(found.others, [(None, true, QoS::ExactlyOnce, false)]);
        // What its own messages come to.
        let plain = granted(&mut tree, "a/b", 0).into_iter().filter(|grant| !grant.no_local);
        assert_eq!(Found::of(plain).qos, QoS::AtLeastOnce);

        let matches = tree.matches(name("c/d"));
        let subscriber = matches.iter().next().unwrap();
        assert!(!subscriber.is_detailed(), "the sum says everything");
        assert_eq!((subscriber.qos, subscriber.retain_as_published), (QoS::ExactlyOnce, true));
        tree.put_back(matches);

        assert_eq!(granted(&mut tree, "d", 0), [no_local(QoS::AtLeastOnce)]);
    }
}

#[test]
fn a_change_of_nothing_but_options_is_seen_at_once() {
    let mut tree = SubscriptionTree::new(1);
    let mut model = Model::default();
    let mut random = Random(13);
    for text in ["a/b", "a/+", "#"] {
        for subscriber in 0..3 {
            tree.subscribe(SubscriberId(subscriber), filter(text), QoS::AtMostOnce);
            model.subscribe(subscriber, text, QoS::AtMostOnce);
        }
    }
    for step in 0..500 {
        let (subscriber, text) = (random.below(3) as u32, ["a/b", "a/+", "#"][random.below(3)]);
        let grant = random.grant();
        // Every other time the list is lent meanwhile.
        let lent = (step % 2 == 0).then(|| tree.matches(name("a/b")));
        let previous = tree.subscribe(SubscriberId(subscriber), filter(text), grant);
        assert_eq!(previous, model.subscribe(subscriber, text, grant));
        if let Some(lent) = lent {
            tree.put_back(lent);
        }
        for topic in ["a/b", "a/c", "b"] {
            assert_eq!(matched(&mut tree, topic), model.matched(topic), "{topic} after {text} in {step}");
        }
    }
    tree.check_invariants();
}

#[test]
fn a_topic_may_be_matched_while_its_list_is_lent() {
    let mut tree = SubscriptionTree::new(1);
    tree.subscribe(SubscriberId(0), filter("a"), QoS::AtMostOnce);
    for _ in 0..3 {
        let outer = tree.matches(name("a"));
        let inner = tree.matches(name("a"));
        assert_eq!((outer.len(), inner.len()), (1, 1));
        tree.put_back(outer);
        assert_eq!(matched(&mut tree, "a").len(), 1);
        tree.put_back(inner);
        drop(tree.matches(name("a")));
        tree.check_invariants();
    }
}

#[test]
fn the_cache_is_bounded() {
    let mut tree = SubscriptionTree::new(1);
    for subscriber in 0..2_000 {
        tree.subscribe(SubscriberId(subscriber), filter("many/#"), QoS::AtMostOnce);
    }
    for subscriber in 0..100_001 {
        tree.subscribe(SubscriberId(subscriber), filter("all"), QoS::AtMostOnce);
    }
    for topic in 0..10_000 {
        let topic = format!("none/{topic}");
        assert_eq!(matched(&mut tree, &topic).len(), 0);
    }
    // Details take room as well.
    for number in 0..200 {
        for text in ["+", "#"] {
            tree.subscribe(SubscriberId(number), filter(&format!("detailed/{text}")), named(number + 1));
        }
    }
    for topic in 0..6_000 {
        let matches = tree.matches(name(&format!("detailed/{}", topic % 3_000)));
        assert!(matches.iter().all(|found| matches.grants(found).eq([named(found.id.0 + 1); 2])));
        tree.put_back(matches);
    }
    tree.check_invariants();
    // More than fits, twice.
    for topic in 0..1_200 {
        let topic = format!("many/{}", topic % 600);
        assert_eq!(matched_in_order(&mut tree, &topic).len(), 2_000);
    }
    assert_eq!(matched_in_order(&mut tree, "all").len(), 100_001);
    assert_eq!(matched_in_order(&mut tree, &format!("many/{}", "x".repeat(600))).len(), 2_000);
    tree.check_invariants();
}

#[test]
fn hostile_shapes_are_walked_once() {
    let mut tree = SubscriptionTree::new(1);
    let slashes = "/".repeat(65_535);
    tree.subscribe(SubscriberId(0), filter(&slashes), QoS::AtMostOnce);
    tree.subscribe(SubscriberId(1), filter(&"+/".repeat(32_767)), QoS::AtMostOnce);
    for bits in 0..1_u32 << 12 {
        let levels: Vec<&str> = (0..12).map(|bit| if bits >> bit & 1 == 1 { "a" } else { "+" }).collect();
        tree.subscribe(SubscriberId(2 + bits), filter(&levels.join("/")), QoS::AtMostOnce);
    }
    tree.check_invariants();
    assert_eq!(matched(&mut tree, &slashes).len(), 1);
    assert_eq!(matched(&mut tree, &slashes[..32_767]).len(), 1);
    assert_eq!(matched(&mut tree, &["a"; 12].join("/")).len(), 1 << 12);
    assert_eq!(matched(&mut tree, &["a"; 13].join("/")).len(), 0);
    for subscriber in 0..2 + (1 << 12) {
        tree.remove_subscriber(SubscriberId(subscriber));
    }
    tree.check_invariants();
}

#[test]
fn deep_filters_of_many_shapes_match_like_the_rule() {
    let mut random = Random(5);
    for seed in 1..=4 {
        let mut tree = SubscriptionTree::new(seed);
        let mut model = Model::default();
        let mut text = |levels: &[&str]| -> String {
            let levels: Vec<&str> =
                (0..1 + random.below(14)).map(|_| levels[random.below(levels.len())]).collect();
            levels.join("/")
        };
        for number in 0..600 {
            let mut text = text(&["a", "+", "a", "b", "+"]);
            if number % 4 == 0 {
                text.push_str("/#");
            }
            tree.subscribe(SubscriberId(number), filter(&text), QoS::AtMostOnce);
            model.subscribe(number, &text, QoS::AtMostOnce);
        }
        for number in 0..600 {
            if number % 3 == 0 {
                tree.remove_subscriber(SubscriberId(number));
                model.remove_some(number, usize::MAX);
            }
            let topic = text(&["a", "a", "a", "b"]);
            assert_eq!(matched(&mut tree, &topic), model.matched(&topic), "{topic}");
        }
        model.check(&tree);
    }
}

#[test]
fn shapes_of_texts_that_a_topic_does_not_have_cost_it_nothing() {
    let seed = seeded(1);
    let mut shapes = Shapes::new();
    let odd = |bits: u32, known: u32| -> String {
        let text = |level| if level < known { "a" } else { "unknown" };
        let levels: Vec<&str> =
            (0..14).map(|level| if bits >> level & 1 == 1 { text(level) } else { "+" }).collect();
        levels.join("/") + "/#"
    };
    for known in [0, 4] {
        // Every beginning of every mixture ends in `#`, so that each place of a walk calls back.
        (0..1 << 14).for_each(|bits| {
            let filter = odd(bits, known);
            let levels = || filter.match_indices('/').map(|(at, _)| at);
            levels().for_each(|at| shapes.insert(&seed, format!("{}/#", &filter[..at]).as_bytes(), |_| ()));
        });
        let mut look_ups = 0;
        let mut search = Search::default();
        shapes.begin(&seed, &mut search);
        shapes.follow(&seed, name(&["a"; 13].join("/")), &mut search, usize::MAX, |_| look_ups += 1);
        assert!(search.is_done());
        let beginnings = 1 << known;

        assert!((1..100 * beginnings).contains(&look_ups), "{look_ups} for {beginnings} beginnings");
    }
}

#[test]
fn stamps_survive_the_end_of_their_numbers() {
    let mut tree = SubscriptionTree::new(1);
    for text in ["a/+", "+/b", "a/b"] {
        tree.subscribe(SubscriberId(0), filter(text), QoS::AtMostOnce);
    }
    tree.epoch = u32::MAX - 2;
    for step in 0..6 {
        tree.subscribe(SubscriberId(1), filter("#"), QoS::new(step % 3).unwrap());
        assert_eq!(matched(&mut tree, "a/b").len(), 2);
    }
    assert_eq!(tree.epoch, 4);
}

/// The list of a topic, if it has no more subscriptions than these; otherwise it is begun.
fn begin_list(tree: &mut SubscriptionTree, topic: &str, at_most: usize) -> Option<Matches> {
    let matches = tree.matches_within(name(topic), at_most);
    assert!(matches.is_complete() || matches.is_empty());
    matches.is_complete().then_some(matches)
}

/// A random change of both.
fn change(random: &mut Random, tree: &mut SubscriptionTree, model: &mut Model, filters: &[String]) {
    let subscriber = random.below(30) as u32;
    let id = SubscriberId(subscriber);
    let text = random.pick(filters);
    match random.below(20) {
        0..=11 => {
            let grant = random.grant();
            let previous = tree.subscribe(id, filter(text), grant);
            assert_eq!(previous, model.subscribe(subscriber, text, grant));
        }
        12..=16 => assert_eq!(tree.unsubscribe(id, text), model.unsubscribe(subscriber, text)),
        17..=18 => {
            let at_most = random.below(4);
            assert_eq!(tree.remove_some(id, at_most), model.remove_some(subscriber, at_most));
        }
        _ => {
            tree.remove_subscriber(id);
            model.remove_some(subscriber, usize::MAX);
        }
    }
}

#[test]
fn a_list_made_in_several_calls_is_that_of_the_moment_it_was_begun() {
    let shallow = (texts(&["a", "b"], 2), filters(&["a", "b", "+", "#"], 2));
    let deep = (texts(&["a"], 10), texts(&["a", "+"], 10));
    let (mut walks, mut merged, mut searches) = (0, 0, 0);
    for seed in 1..=60 {
        let mut random = Random(seed);
        let mut tree = SubscriptionTree::new(seed);
        let mut model = Model::default();
        // Few filters, each with many subscriptions, or many that come and go; or many that take long to be found.
        let ((topics, filters), filters_max, slice_max) =
            if seed % 3 == 0 { (&deep, 60, 250) } else { (&shallow, 8, 4) };
        let filters: Vec<String> =
            (0..2 + random.below(filters_max)).map(|_| random.pick(filters).to_owned()).collect();
        for _ in 0..100 {
            for _ in 0..random.below(30) {
                change(&mut random, &mut tree, &mut model, &filters);
            }
            let topic = random.pick(topics);
            let begun = model.matched(topic);
            let at_most = random.below(10);
            let exceeds = tree.may_exceed(name(topic), at_most, at_most);
            assert!(exceeds || begun.len() <= at_most);
            let mut list = begin_list(&mut tree, topic, at_most);
            while list.is_none() {
                assert!(tree.is_listing() && exceeds);
                searches += usize::from(tree.walk.as_ref().is_some_and(|walk| walk.searching.is_some()));
                for _ in 0..random.below(4) {
                    change(&mut random, &mut tree, &mut model, &filters);
                    tree.check_invariants();
                }
                // Others, or the same, at once.
                let other = random.pick(topics);
                let matches = begin_list(&mut tree, other, 0).expect("there is one walk at a time");
                assert_eq!(found_in(&matches), model.matched(other), "seed {seed}: {other}");
                tree.put_back(matches);
                list = tree.list_further(random.below(slice_max));
                if list.is_some() {
                    walks += 1;
                    merged += usize::from(begun.values().any(|found| found.others.len() > 1));
                }
            }
            assert!(!tree.is_listing());
            let list = list.expect("it is whole");
            assert_eq!(found_in(&list), begun, "seed {seed}: {topic}");
            tree.put_back(list);
            assert_eq!(matched(&mut tree, topic), model.matched(topic), "seed {seed}: {topic}");
            model.check(&tree);
        }
    }
    assert!(walks > 1_000 && merged > 100, "{walks} walks, {merged} with details");
    assert!(searches > 1_000, "{searches} times a search was not done");
}

#[test]
fn a_search_comes_to_an_end_whatever_is_made_ahead_of_it() {
    const LEVELS: usize = 30;
    const MIXED: usize = 8;
    let mix = |number: usize, levels: usize| -> String {
        let level = |at| if number >> at & 1 == 0 { "a" } else { "+" };
        (0..levels).map(level).collect::<Vec<_>>().join("/")
    };
    let mut tree = SubscriptionTree::new(1);
    for number in 0..1 << MIXED {
        tree.subscribe(SubscriberId(0), filter(&(mix(number, MIXED) + "/#")), QoS::AtMostOnce);
    }
    // Behind the last one of those that it follows.
    let ahead = |number| format!("{}/{}", ["+"; MIXED].join("/"), mix(number, LEVELS - MIXED));
    // Nodes of theirs are given again.
    for number in 0..1_000 {
        tree.subscribe(SubscriberId(1), filter(&ahead(number)), QoS::AtMostOnce);
    }
    tree.remove_subscriber(SubscriberId(1));
    let mut list = begin_list(&mut tree, &["a"; LEVELS].join("/"), 16);
    let (mut calls, mut made) = (0, 0);
    while list.is_none() {
        // More than a call follows.
        for _ in 0..16 {
            tree.subscribe(SubscriberId(1), filter(&ahead(made)), QoS::AtMostOnce);
            made += 1;
        }
        list = tree.list_further(16);
        calls += 1;
        assert!(calls < 300, "it comes to an end");
    }
    tree.check_invariants();
    let list = list.expect("it is whole");
    assert_eq!(found_in(&list).keys().copied().collect::<Vec<_>>(), [0]);
}

/// Where nothing changes, or only what does not match, nobody can tell how the list was made.
#[test]
fn the_order_of_a_list_does_not_depend_on_how_it_was_made() {
    let mut random = Random(7);
    let mut tree = SubscriptionTree::new(1);
    for text in filters(&["a", "b", "+", "#"], 3) {
        for _ in 0..3 {
            tree.subscribe(SubscriberId(random.below(50) as u32), filter(&text), random.grant());
        }
    }
    let listed = |matches: &Matches| -> Vec<(u32, Vec<Grant>)> {
        matches.iter().map(|subscriber| (subscriber.id.0, grants(matches, subscriber))).collect()
    };
    let matches = tree.matches(name("a/b/a"));
    let at_once = listed(&matches);
    drop(matches);
    for slice in 1..10 {
        let mut calls = 1;
        let mut list = begin_list(&mut tree, "a/b/a", slice);
        while list.is_none() {
            let other = ["b", "b/+", "a/b", "new"][calls % 4];
            tree.unsubscribe(SubscriberId(0), other);
            tree.subscribe(SubscriberId(0), filter(other), named(1));
            list = tree.list_further(slice);
            calls += 1;
        }
        let list = list.expect("it is whole");
        assert!(calls > 40 / slice, "{calls} calls of {slice}");
        assert_eq!(listed(&list), at_once);
        // It was changed with wildcards meanwhile, and is not kept.
        tree.put_back(list);
    }
}

/// What was there at the beginning is listed as it was, however much of it is there at the end.
#[test]
fn a_walk_outlives_its_filters() {
    for at_first in [0, 1, 50, 100, 150, 299] {
        let mut tree = SubscriptionTree::new(1);
        for subscriber in 0..100 {
            for text in ["a/b", "a/+", "#"] {
                tree.subscribe(SubscriberId(subscriber), filter(text), QoS::AtLeastOnce);
            }
        }
        assert!(begin_list(&mut tree, "a/b", at_first).is_none());
        (0..100).for_each(|subscriber| tree.remove_subscriber(SubscriberId(subscriber)));
        tree.check_invariants();
        // The numbers of filters and subscriptions are given again, and others for the first time.
        for subscriber in 0..110 {
            for text in ["c", "#", "a/+", "a/b", "+/b"] {
                tree.subscribe(SubscriberId(subscriber), filter(text), QoS::ExactlyOnce);
            }
        }
        tree.check_invariants();
        let mut list = None;
        while list.is_none() {
            list = tree.list_further(usize::MAX);
        }
        let list = list.expect("it is whole");
        assert_eq!(list.len(), 100);
        assert!(list.iter().all(|subscriber| subscriber.qos == QoS::AtLeastOnce));
        tree.put_back(list);
        assert_eq!(matched(&mut tree, "a/b").len(), 110);
    }
}
