//! Which recipient goes to which next hop: routes, address literals, mail exchangers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Route;
use crate::delivery::{Answer, Fate, Host, NextHop, Outcome};
use crate::dns::{Dns, Exchanger};
use crate::mail::{Address, Envelope};

/// The recipients of a message that go the same way.
#[derive(Clone, Debug)]
pub(crate) struct Leg {
    pub(crate) hop: Arc<NextHop>,
    pub(crate) hosts: Arc<[Host]>,
    pub(crate) recipients: Vec<usize>,
}

/// Legs, and outcomes of those recipients that have nowhere to go.
#[derive(Default, Debug)]
pub(crate) struct Plan {
    pub(crate) legs: Vec<Leg>,
    pub(crate) outcomes: Vec<Outcome>,
}

pub(crate) fn by_route(route: &Route) -> (Arc<NextHop>, Arc<[Host]>) {
    let hosts = vec![Host { name: route.host.clone(), port: route.port }];
    (Arc::new(NextHop { hosts: hosts.clone(), auth: route.auth.clone(), configured: true }), hosts.into())
}

/// Looks up where each domain's mail goes. Domains with the same hosts share a leg.
pub(crate) async fn by_exchangers(
    dns: &Dns,
    envelope: &Envelope,
    pending: &[usize],
    own_name: &str,
    port: u16,
) -> Plan {
    let mut plan = Plan::default();
    let mut domains: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for &at in pending {
        let Some(recipient) = envelope.recipients.get(at) else { continue };
        domains.entry(recipient.address.domain()).or_default().push(at);
    }
    for recipients in domains.into_values() {
        let first = recipients.first().and_then(|&at| envelope.recipients.get(at));
        let Some(address) = first.map(|recipient| &recipient.address) else { continue };
        match hosts(dns, address, own_name).await {
            Ok(names) => plan.add(names, port, recipients),
            Err((fate, answer)) => plan.outcomes.extend(answer.for_all(&recipients, fate)),
        }
    }
    plan
}

impl Plan {
    fn add(&mut self, names: Vec<String>, port: u16, recipients: Vec<usize>) {
        let hosts: Vec<Host> = names.into_iter().map(|name| Host { name, port }).collect();
        let mut sorted = hosts.clone();
        sorted.sort_unstable();
        if let Some(leg) = self.legs.iter_mut().find(|leg| leg.hop.hosts == sorted) {
            leg.recipients.extend(recipients);
            return;
        }
        let hop = Arc::new(NextHop { hosts: sorted, auth: None, configured: false });
        self.legs.push(Leg { hop, hosts: hosts.into(), recipients });
    }
}

/// Host names in the order to try.
async fn hosts(dns: &Dns, address: &Address, own_name: &str) -> Result<Vec<String>, (Fate, Answer)> {
    let bounce = |status: &str, what: &str| (Fate::Bounced, Answer::local("", status, what));
    let defer = |name: &str| (Fate::Deferred, Answer::local("", "4.4.3", &format!("DNS gave no answer for {name}")));
    let Some(domain) = address.dns_domain() else {
        let literal = address.domain().trim_start_matches('[').trim_end_matches(']');
        return Ok(vec![literal.strip_prefix("IPv6:").unwrap_or(literal).to_owned()]);
    };
    let exchangers = dns.mail_exchangers(&domain).await.map_err(|error| defer(&error.name))?;
    let Some(exchangers) = exchangers else {
        return Err(bounce("5.1.10", &format!("556 {domain} does not accept mail (null MX)")));
    };
    if exchangers.is_empty() {
        let addresses = dns.addresses(&domain).await.map_err(|error| defer(&error.name))?;
        return if addresses.is_empty() {
            Err(bounce("5.1.2", &format!("{domain} has neither MX nor address")))
        } else {
            Ok(vec![domain])
        };
    }
    let names = before_us(exchangers, own_name);
    if names.is_empty() {
        Err(bounce("5.4.6", &format!("mail for {domain} loops back to this host")))
    } else {
        Ok(names)
    }
}

/// RFC 5321 section 5.1: where we are an exchanger ourselves, only those of better preference are left.
fn before_us(exchangers: Vec<Exchanger>, own_name: &str) -> Vec<String> {
    let ours = exchangers.iter().filter(|exchanger| exchanger.host.eq_ignore_ascii_case(own_name));
    let limit = ours.map(|exchanger| exchanger.preference).min();
    let better = |exchanger: &Exchanger| limit.is_none_or(|limit| exchanger.preference < limit);
    exchangers.into_iter().filter(better).map(|exchanger| exchanger.host).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used, reason = "tests")]

    use super::*;

    #[test]
    fn worse_and_equal_exchangers_than_ourselves_are_left_out() {
        let exchanger = |preference, host: &str| Exchanger { preference, host: host.to_owned() };
        let all = vec![exchanger(5, "a"), exchanger(10, "Us"), exchanger(10, "b"), exchanger(20, "c")];
        assert_eq!(before_us(all.clone(), "us"), ["a"]);
        assert_eq!(before_us(all, "other").len(), 4);
        assert!(before_us(vec![exchanger(10, "us")], "us").is_empty());
    }

    #[test]
    fn domains_with_the_same_hosts_share_a_leg_whatever_their_order() {
        let mut plan = Plan::default();
        plan.add(vec!["a".to_owned(), "b".to_owned()], 25, vec![0]);
        plan.add(vec!["b".to_owned(), "a".to_owned()], 25, vec![1, 2]);
        plan.add(vec!["b".to_owned()], 25, vec![3]);
        let legs: Vec<_> = plan.legs.iter().map(|leg| leg.recipients.clone()).collect();
        assert_eq!(legs, [vec![0, 1, 2], vec![3]]);
    }

    #[tokio::test]
    async fn each_domain_goes_where_dns_says_or_nowhere() {
        use crate::mail::{Body, Notify, Recipient, ReversePath};
        let servers = vec![crate::dns::tests::serve().await];
        let dns = Dns::new(&crate::config::DnsConfig { servers, timeout_s: 1 }).expect("a resolver");
        let to = ["null.test", "missing.test", "servfail.test", "host.test", "many.test", "[127.0.0.9]"];
        let recipients = to.map(|domain| Recipient {
            address: Address::new(&format!("a@{domain}")).expect("an address"),
            notify: Notify::default(),
            original: None,
        });
        let (reverse_path, recipients) = (ReversePath::Null, recipients.to_vec());
        let body = Body::SevenBit;
        let envelope = Envelope { reverse_path, recipients, body, smtputf8: false, ret: None, envid: None };
        let plan = by_exchangers(&dns, &envelope, &[0, 1, 2, 3, 4, 5], "b.test", 25).await;
        let mut ended: Vec<_> = plan.outcomes.iter().map(|it| (it.recipient, it.fate, &*it.answer.status)).collect();
        ended.sort_unstable_by_key(|(recipient, ..)| *recipient);
        assert_eq!(ended[..2], [(0, Fate::Bounced, "5.1.10"), (1, Fate::Bounced, "5.1.2")]);
        // We are b.test, an exchanger of many.test at the best preference: a loop.
        assert_eq!(ended[2..], [(2, Fate::Deferred, "4.4.3"), (4, Fate::Bounced, "5.4.6")]);
        let mut legs: Vec<_> = plan.legs.iter().map(|leg| (leg.recipients[0], &*leg.hosts[0].name)).collect();
        legs.sort_unstable();
        assert_eq!(legs, [(3, "host.test"), (5, "127.0.0.9")]);
    }
}
