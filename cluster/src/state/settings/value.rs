//! The types that a setting can have, and how a text becomes one.

use serde::{Deserialize, Serialize};

use crate::command::LimitUnit;
use crate::name::DomainName;

const LIST_ITEMS_MAX: usize = 1_000;
const LIST_ITEM_LENGTH_MAX: usize = 320;
const HEADERS_MAX: usize = 20;
const HEADER_NAME_LENGTH_MAX: usize = 76;
const REGEX_LENGTH_MAX: usize = 500;

/// A typed value of a setting; which one a key takes is in its row of the table.
#[derive(Serialize, Deserialize, Clone, PartialEq, Debug)]
pub enum Value {
    Bool(bool),
    Number(u64),
    /// Enumerations and names.
    Text(String),
    List(Vec<String>),
    Headers(Vec<IdentificationHeader>),
}

/// One header that may name the person inside a smarthost's mail.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct IdentificationHeader {
    pub name: String,
    /// Its first group is the identity; the whole field where absent.
    #[serde(default)]
    pub regex: Option<String>,
    /// Strip the header before delivery.
    #[serde(default)]
    pub remove: bool,
}

/// A Rust type that a row of the table may have.
pub(super) trait Field: Sized {
    fn to_value(&self) -> Value;
    /// `None` where the value has another type.
    fn from_value(value: &Value) -> Option<Self>;
}

/// Values that fit a row: its type and its range.
pub(super) enum Kind {
    Bool,
    Number {
        min: u64,
        max: u64,
        unit: &'static str,
    },
    Choice(&'static [&'static str]),
    /// One DNS label.
    Label,
    /// Domains, `.example.com` for all below.
    Domains,
    /// Address patterns.
    Patterns,
    Headers,
}

impl Value {
    /// The JSON form used by API, CLI and export.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Bool(value) => (*value).into(),
            Self::Number(value) => (*value).into(),
            Self::Text(value) => value.as_str().into(),
            Self::List(values) => values.as_slice().into(),
            Self::Headers(headers) => headers.iter().map(header_json).collect(),
        }
    }
}

fn header_json(header: &IdentificationHeader) -> serde_json::Value {
    serde_json::json!({ "name": header.name, "regex": header.regex, "remove": header.remove })
}

impl Kind {
    /// What to give, for help and errors.
    pub(super) fn expects(&self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Number { min, max, unit } => format!("{min}…{max} {unit}").trim_end().to_owned(),
            Self::Choice(names) => names.join(", "),
            Self::Label => "one label of letters, digits, hyphens".to_owned(),
            Self::Domains => "domains separated by commas, .example.com or *.example.com for all below".to_owned(),
            Self::Patterns => "address patterns separated by commas, such as *@example.com".to_owned(),
            Self::Headers => r#"JSON: [{"name": "X-User", "regex": "^(.*)$", "remove": true}]"#.to_owned(),
        }
    }

    pub(super) fn parse(&self, text: &str) -> Option<Value> {
        let value = match self {
            Self::Bool => Value::Bool(text.parse().ok()?),
            Self::Number { .. } => Value::Number(number(text)?),
            Self::Choice(_) => Value::Text(text.to_owned()),
            Self::Label => Value::Text(text.to_ascii_lowercase()),
            Self::Domains => Value::List(items(&text.to_ascii_lowercase())),
            Self::Patterns => Value::List(items(text)),
            Self::Headers if text.is_empty() => Value::Headers(Vec::new()),
            Self::Headers => Value::Headers(serde_json::from_str(text).ok()?),
        };
        self.fits(&value).then_some(value)
    }

    pub(super) fn fits(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Bool, Value::Bool(_)) => true,
            (Self::Number { min, max, .. }, Value::Number(number)) => (min..=max).contains(&number),
            (Self::Choice(names), Value::Text(text)) => names.contains(&text.as_str()),
            (Self::Label, Value::Text(text)) => {
                text.len() <= 63 && DomainName::new(text).is_ok() && !text.contains('.')
            }
            (Self::Domains, Value::List(list)) => list_fits(list, is_domain_pattern),
            (Self::Patterns, Value::List(list)) => list_fits(list, is_address_pattern),
            (Self::Headers, Value::Headers(headers)) => headers.len() <= HEADERS_MAX && headers.iter().all(header_fits),
            (
                Self::Bool
                | Self::Number { .. }
                | Self::Choice(_)
                | Self::Label
                | Self::Domains
                | Self::Patterns
                | Self::Headers,
                Value::Bool(_) | Value::Number(_) | Value::Text(_) | Value::List(_) | Value::Headers(_),
            ) => false,
        }
    }
}

/// Digits, or a fraction such as `0.9`, which stands for thousandths.
fn number(text: &str) -> Option<u64> {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    match text.split_once('.') {
        None if digits(text) => text.parse().ok(),
        Some((whole, fraction)) if digits(whole) && digits(fraction) && (1..=3).contains(&fraction.len()) => {
            let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
            let fraction: u64 = format!("{fraction:0<3}").parse().ok()?;
            whole.checked_mul(1_000)?.checked_add(fraction)
        }
        None | Some(_) => None,
    }
}

fn items(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn list_fits(list: &[String], fits: fn(&str) -> bool) -> bool {
    list.len() <= LIST_ITEMS_MAX && list.iter().all(|item| fits(item))
}

fn is_domain_pattern(item: &str) -> bool {
    let name = item.strip_prefix("*.").or_else(|| item.strip_prefix('.')).unwrap_or(item);
    !name.ends_with('.') && DomainName::new(name).is_ok()
}

fn is_address_pattern(item: &str) -> bool {
    !item.is_empty()
        && item.len() <= LIST_ITEM_LENGTH_MAX
        && !item.chars().any(|c| c.is_whitespace() || c.is_control() || c == ',')
}

/// RFC 5322 section 2.2: printable ASCII but the colon.
fn header_fits(header: &IdentificationHeader) -> bool {
    !header.name.is_empty()
        && header.name.len() <= HEADER_NAME_LENGTH_MAX
        && header.name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
        && header.regex.as_ref().is_none_or(|regex| regex.len() <= REGEX_LENGTH_MAX)
}

macro_rules! choice_field {
    ($name:ident { $( $variant:ident = $text:literal ),* $(,)? }) => {
        impl $name {
            pub(super) const NAMES: &'static [&'static str] = &[$( $text ),*];

            /// The name that configuration, API and CLI use.
            pub fn as_str(self) -> &'static str {
                match self { $( Self::$variant => $text ),* }
            }
        }

        impl Field for $name {
            fn to_value(&self) -> Value {
                Value::Text(self.as_str().to_owned())
            }

            fn from_value(value: &Value) -> Option<Self> {
                let Value::Text(text) = value else { return None };
                match text.as_str() { $( $text => Some(Self::$variant), )* _ => None }
            }
        }
    };
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $( $variant:ident = $text:literal ),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Serialize, Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $( $variant ),* }

        choice_field!($name { $( $variant = $text ),* });
    };
}

choice! {
    /// What the client hears when its message is held as spam.
    QuarantineResponse { Rejected = "rejected", Accepted = "accepted" }
}
choice! {
    /// How far the sender's address must be able to receive.
    ValidSender { Off = "off", Domain = "domain", Mailbox = "mailbox" }
}
choice! {
    /// How to recognise the person inside a smarthost's mail.
    IdentificationMethod {
        None = "none",
        EnvelopeSender = "envelope_sender",
        AuthenticationUser = "authentication_user",
        Header = "header",
    }
}
choice! {
    /// The reply at the end of DATA while locked.
    LockedResponse { Defer = "defer", Reject = "reject", Discard = "discard" }
}
choice! {
    /// Which mail the domain's admin contact gets.
    NotifyAdmin { Off = "off", Locks = "locks", All = "all" }
}
choice! {
    /// What happens to a message that a scanner could not judge.
    ScannerFailure { Defer = "defer", Accept = "accept" }
}
choice_field!(LimitUnit { Messages = "messages", Recipients = "recipients" });

impl Field for bool {
    fn to_value(&self) -> Value {
        Value::Bool(*self)
    }

    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Bool(value) = value { Some(*value) } else { None }
    }
}

impl Field for u64 {
    fn to_value(&self) -> Value {
        Value::Number(*self)
    }

    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Number(value) = value { Some(*value) } else { None }
    }
}

impl Field for String {
    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }

    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Text(value) = value { Some(value.clone()) } else { None }
    }
}

impl Field for Vec<String> {
    fn to_value(&self) -> Value {
        Value::List(self.clone())
    }

    fn from_value(value: &Value) -> Option<Self> {
        if let Value::List(value) = value { Some(value.clone()) } else { None }
    }
}

impl Field for Vec<IdentificationHeader> {
    fn to_value(&self) -> Value {
        Value::Headers(self.clone())
    }

    fn from_value(value: &Value) -> Option<Self> {
        if let Value::Headers(value) = value { Some(value.clone()) } else { None }
    }
}
