//! Wills whose time has come: the core says when it publishes one, and the model whether it may.

use std::rc::Rc;

use broker::broker::event::WillStep;

use super::Model;
use super::session::Will;

/// A will that is to be published.
#[derive(Clone, Debug)]
pub(super) struct DueWill {
    will: Will,
    /// Whether its session is stored, or was.
    is_stored: bool,
}

/// Those of which the core has yet to speak.
#[derive(Clone, Debug, Default)]
pub(super) struct DueWills {
    /// In the input being handled.
    in_hand: Vec<DueWill>,
    put_off: Vec<DueWill>,
    /// Sessions, by client id and incarnation, whose will came before its time: because they are ending.
    ending: Vec<(String, usize)>,
}

impl Model {
    /// The time of a will has come.
    pub(super) fn expect_will(&mut self, will: Will, is_stored: bool) {
        self.due_wills.in_hand.push(DueWill { will, is_stored });
    }

    /// What the core does with the will that has this payload, of which there is no other.
    pub(super) fn will(&mut self, payload: &[u8], step: WillStep) {
        let DueWills { in_hand, put_off, .. } = &mut self.due_wills;
        let is_it = |due: &DueWill| due.will.message.payload.as_bytes() == payload;
        let due = if let Some(at) = in_hand.iter().position(is_it) {
            in_hand.remove(at)
        } else if let Some(at) = put_off.iter().position(is_it) {
            let due = put_off.remove(at);
            let overtakes =
                put_off[..at].iter().any(|first| first.will.message.topic == due.will.message.topic);
            assert!(!overtakes, "wills to one topic come in their order");
            self.coverage.see("will: published after it had waited");
            due
        } else {
            self.will_of_absent(payload)
        };
        match step {
            WillStep::PutOff => {
                self.coverage.see("will: put off");
                self.due_wills.put_off.push(due);
            }
            WillStep::Published => self.publish_will(&due.will),
        }
    }

    /// A will that waited for its delay.
    fn will_of_absent(&mut self, payload: &[u8]) -> DueWill {
        let has_it = |will: &mut Will| will.message.payload.as_bytes() == payload;
        let mut absent = self.sessions.iter_mut().filter(|(_, session)| session.connection.is_none());
        let found = absent.find_map(|(client_id, session)| {
            let will = session.will.take_if(has_it)?;
            let is_due = will.due_at.is_some_and(|at| at <= self.now);
            if !is_due {
                self.due_wills.ending.push((client_id.clone(), session.incarnation));
            }
            Some((will, session.is_stored, is_due))
        });
        let (will, is_stored, is_due) = found.expect("a will is published once, when its time has come");
        // [B-025] [B-026]
        self.coverage.see_if("will: published at the end of its session", !is_due);
        self.coverage.see_if("will: delayed and published", is_due);
        DueWill { will, is_stored }
    }

    fn publish_will(&mut self, will: &Will) {
        self.coverage.see("will");
        let mut message = will.message.clone();
        message.at = self.now;
        // [B-031]
        message.expires_at = will.expiry.map(|expiry| self.now + expiry);
        self.route(&Rc::new(message));
    }

    /// All that the core has to say about an input has been said.
    pub(crate) fn check_wills(&mut self) {
        assert!(self.due_wills.in_hand.is_empty(), "a will is published [MQTT-3.1.2-8]");
        for (client_id, incarnation) in self.due_wills.ending.drain(..) {
            let session = self.sessions.get(&client_id);
            let has_ended = session.is_none_or(|session| session.incarnation != incarnation);
            assert!(has_ended, "{client_id}: its will came before its delay was over [MQTT5-3.1.3-9]");
        }
    }

    /// Whether a will waits that a crash leaves there.
    pub(crate) fn has_will_put_off(&self) -> bool {
        self.due_wills.put_off.iter().any(|due| due.is_stored)
    }

    /// Whether no will waits.
    pub(crate) fn has_no_will_put_off(&self) -> bool {
        self.due_wills.put_off.is_empty()
    }

    /// Of what was put off before a crash only what was stored is still there.
    pub(super) fn forget_unstored_wills(&mut self) {
        self.due_wills.put_off.retain(|due| due.is_stored);
        self.coverage.see_if("will: put off, and a crash", !self.due_wills.put_off.is_empty());
    }
}
