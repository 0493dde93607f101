//! `outgate why`: an explanation in words.

use serde_json::Value;

use super::Outcome;
use super::client::{Admin, segment};
use super::log::incomplete;
use super::output::{Output, cell, print, printable, remark};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    admin: Admin,
    /// A message id or a login
    #[arg(value_name = "ID|LOGIN")]
    what: String,
}

pub(super) async fn execute(args: Args) -> Outcome {
    let answer = args.admin.client().get(&format!("/why/{}", segment(&args.what))).await?;
    match args.admin.output {
        output @ (Output::Json | Output::Csv) => output.one(&answer)?,
        Output::Table => print(&explain(&answer))?,
    }
    match cell(&answer["missing_nodes"]) {
        nodes if nodes.is_empty() => Ok(()),
        nodes => remark(&incomplete(&nodes)),
    }
}

fn explain(answer: &Value) -> String {
    let mut text = Text::default();
    if answer["records"].is_array() {
        message(&mut text, answer)
    } else {
        user(&mut text, answer)
    }
    printable(&text.0)
}

/// Lines of `label: value`; what is empty is left out.
#[derive(Default)]
struct Text(String);

impl Text {
    fn line(&mut self, label: &str, value: impl AsRef<str>) {
        if !value.as_ref().is_empty() {
            self.raw(&format!("{label:<14}{}", value.as_ref()));
        }
    }

    fn value(&mut self, label: &str, value: &Value) {
        self.line(label, cell(value));
    }

    fn raw(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }
}

fn message(text: &mut Text, answer: &Value) {
    text.value("message", &answer["id"]);
    for record in list(&answer["records"]) {
        let (at, event) = (cell(&record["at"]), &record["event"]);
        match event["event"].as_str() {
            Some("submission") => submission(text, &at, event),
            Some("attempt") => text.raw(&attempt(&at, event)),
            Some(_) | None => text.raw(&change(&at, event)),
        }
    }
    if !answer["queue"].is_null() {
        let queue = &answer["queue"];
        let state = if queue["frozen"] == true { "frozen" } else { "waiting" };
        text.line("now", format!("in the delivery queue, {state}, next attempt {}", cell(&queue["next_attempt"])));
    } else if !answer["queue_node"].is_null() {
        text.line("now", format!("in the delivery queue of node {}", cell(&answer["queue_node"])));
    }
    if !answer["quarantine"].is_null() {
        text.line("now", format!("in quarantine since {}", cell(&answer["quarantine"]["held"])));
    }
}

fn submission(text: &mut Text, at: &str, event: &Value) {
    text.line("came", format!("{at} on node {} in {} octets", cell(&event["node"]), cell(&event["size"])));
    text.line("from client", format!("{} (HELO {})", cell(&event["client"]), cell(&event["helo"])));
    text.value("user", &event["user"]);
    text.value("identity", &event["identity"]);
    text.line("sender", format!("<{}>, header From {}", cell(&event["sender"]), cell(&event["header_from"])));
    text.value("recipients", &event["recipients"]);
    text.value("subject", &event["subject"]);
    for finding in list(&event["evidence"]) {
        text.value("finding", finding);
    }
    text.line("judged", format!("{}, score {:.2}", cell(&event["class"]), event["score"].as_f64().unwrap_or(0.0)));
    for counter in list(&event["counters"]) {
        text.line("counter", counted(&cell(counter), event));
    }
    text.value("lock", &event["lock"]);
    let decided = match event["log_index"].as_u64() {
        None => "on this node, without an entry of the replicated log".to_owned(),
        Some(index) => format!("by entry {index} of the replicated log"),
    };
    text.line("decided", decided);
    text.line("reply", format!("{} ({})", cell(&event["reply"]), cell(&event["status"])));
}

/// `scope/window before -> after / limit`. A domain may count in a unit of its own, so what a message with several
/// recipients added there is not known here.
fn counted(counter: &str, event: &Value) -> String {
    let parts = counter.split_once(' ').and_then(|(window, usage)| Some((window, usage.split_once('/')?)));
    let (Some((window, (after, limit))), Some(cost)) = (parts, event["cost"].as_u64()) else {
        return counter.to_owned();
    };
    // A message with the null reverse-path counts in a window of its own alone.
    let null = matches!(cell(&event["sender"]).as_str(), "" | "<>");
    let cost = if null == window.starts_with("null_sender/") { cost } else { 0 };
    let one = cost == 0 || list(&event["recipients"]).len() == 1;
    match after.parse::<u64>() {
        Ok(used) if one || !window.starts_with("domain/") => {
            format!("{window} {} -> {used} / {limit}", used.saturating_sub(cost))
        }
        Ok(_) | Err(_) => counter.to_owned(),
    }
}

fn attempt(at: &str, event: &Value) -> String {
    format!(
        "{at}  {} to {} at {}: {}",
        cell(&event["status"]),
        cell(&event["recipient"]),
        cell(&event["host"]),
        cell(&event["reply"])
    )
}

fn change(at: &str, event: &Value) -> String {
    format!("{at}  {} by {}: {}", cell(&event["status"]), cell(&event["by"]), cell(&event["detail"]))
}

fn user(text: &mut Text, answer: &Value) {
    text.line("user", format!("{} ({} of {})", cell(&answer["login"]), cell(&answer["kind"]), cell(&answer["domain"])));
    let enabled = match (answer["enabled"] == true, answer["domain_enabled"] == true) {
        (true, true) => "yes",
        (false, _) => "no: the user is disabled, logins are refused",
        (true, false) => "no: the domain is disabled, logins are refused",
    };
    text.line("enabled", enabled);
    let lock = &answer["lock"];
    text.value("lock", &lock["state"]);
    text.value("  reason", &lock["reason"]);
    text.value("  until", &lock["until"]);
    text.line("  unlocks used", format!(" {}", cell(&lock["unlocks_used"])));
    for window in list(&answer["all_windows"]) {
        text.line("window", format!("{}/{}: {}", cell(&window["scope"]), cell(&window["window"]), usage(window)));
    }
    text.line(
        "recipients",
        format!(
            "{} different in 24 h, {} invalid",
            cell(&answer["distinct_recipients"]),
            cell(&answer["invalid_recipients"])
        ),
    );
    if let Value::Object(settings) = &answer["settings"] {
        for (key, value) in settings {
            text.line("setting", format!("{key} = {}", cell(value)));
        }
    }
    text.line("identities", format!("{} {}", cell(&answer["identities"]), locked(&answer["locked_identities"])));
    for step in list(&answer["history"]) {
        let evidence = cell(&step["messages"]);
        let evidence = if evidence.is_empty() { evidence } else { format!(" ({evidence})") };
        text.raw(&format!(
            "{}  {} → {}: {}{evidence}",
            cell(&step["at"]),
            cell(&step["from"]),
            cell(&step["to"]),
            cell(&step["cause"])
        ));
    }
    for record in list(&answer["recent"]) {
        let event = &record["event"];
        if event["event"] == "submission" {
            text.line(
                "recent",
                format!(
                    "{} {} {} {}",
                    cell(&record["at"]),
                    cell(&record["id"]),
                    cell(&event["class"]),
                    cell(&event["reply"])
                ),
            );
        }
    }
}

fn usage(window: &Value) -> String {
    match (window["limit"].as_u64(), window["next_free_s"].as_u64()) {
        (Some(0) | None, _) => format!("{} used, no limit", cell(&window["used"])),
        (Some(limit), Some(0) | None) => format!("{} of {limit} used", cell(&window["used"])),
        (Some(limit), Some(wait)) => format!("{} of {limit} used, free again in {wait} s", cell(&window["used"])),
    }
}

fn locked(identities: &Value) -> String {
    let names = cell(identities);
    if names.is_empty() { names } else { format!("(locked: {names})") }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_is_explained_from_its_arrival_to_now() {
        let text = explain(&json!({
            "id": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
            "records": [
                {"at": "T1", "event": {"event": "submission", "node": 1, "size": 9, "client": "192.0.2.1", "helo": "h",
                    "user": "a@b.test", "sender": "a@b.test", "header_from": "a@b.test", "recipients": ["c@d.test"],
                    "subject": "x\u{1b}", "evidence": ["gtube: spam"], "class": "spam", "score": 1.0, "counters": ["user/minute 1/60"], "cost": 1,
                    "lock": "unlocked", "log_index": 7, "reply": "550 5.7.1 no", "status": "rejected"}},
                {"at": "T2", "event": {"event": "change", "status": "released", "by": "cli", "detail": "released from quarantine"}},
                {"at": "T3", "event": {"event": "attempt", "status": "delivered", "recipient": "c@d.test", "host": "mx", "reply": "250 ok"}},
            ],
            "queue": null, "quarantine": null,
        }));
        for part in [
            "gtube: spam",
            "spam, score 1.00",
            "user/minute 0 -> 1 / 60",
            "unlocked",
            "entry 7",
            "550 5.7.1 no (rejected)",
            "T2  released by cli",
            "T3  delivered to c@d.test at mx: 250 ok",
        ] {
            assert!(text.contains(part), "`{part}` in\n{text}");
        }
        assert!(!text.contains('\u{1b}'));
    }
}
