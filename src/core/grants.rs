//! What somebody may do: a few rules, each an action with a name or a prefix of names.

use std::fmt;

use taskyard_proto::{QueueName, name::NAME_BYTES_MAX};

/// The most rules that one account may have. They are looked at one by one at every message.
pub const RULES_MAX: usize = 256;

/// A kind of doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Submit, cancel and watch tasks, publish.
    Submit,
    /// Subscribe, pull, settle, join.
    Consume,
    /// Read queues, tasks, workers and metrics.
    Observe,
    /// Change settings, pause, purge, redrive, drain, schedule. Implies `Observe`.
    Manage,
}

impl Action {
    /// Every action.
    pub const ALL: [Action; 4] = [Action::Submit, Action::Consume, Action::Observe, Action::Manage];

    /// The word that rules use.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Submit => "submit",
            Action::Consume => "consume",
            Action::Observe => "observe",
            Action::Manage => "manage",
        }
    }

    /// The action of a word.
    pub fn parse(text: &str) -> Option<Action> {
        Action::ALL.into_iter().find(|action| action.as_str() == text)
    }

    /// Whether who may do `self` may do `other`, on the same names.
    fn implies(self, other: Action) -> bool {
        self == other || (self == Action::Manage && other == Action::Observe)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The names that a rule is about. Queues and rooms have names of one kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Names {
    Exactly(QueueName),
    /// Empty: all.
    Beginning(Box<str>),
}

/// One permission: `submit:emails`, `consume:mail.*`, `observe:*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    action: Action,
    names: Names,
}

/// Why a text is no rule. The text is cut to a printable length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuleError {
    /// There is no `:` in it.
    NoColon(String),
    /// What stands before the `:` is no action.
    NoAction(String),
    /// Nothing stands behind the `:`.
    NoName(String),
    /// A `*` that is not the one at the end.
    Star(String),
    /// What stands behind the `:` could not begin, or be, a name.
    Name(String),
    /// More than [`RULES_MAX`] rules.
    TooMany(usize),
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RuleError::NoColon(rule) => {
                write!(f, "{rule:?} is no rule: expected ACTION:NAME, as in submit:emails or observe:*")
            }
            RuleError::NoAction(rule) => write!(
                f,
                "{rule:?} begins with no action: expected submit, consume, observe or manage before the ':'"
            ),
            RuleError::NoName(rule) => write!(
                f,
                "{rule:?} names nothing: expected the name of a queue or room behind the ':', a prefix with '*', \
                 or '*' alone for all"
            ),
            RuleError::Star(rule) => write!(
                f,
                "{rule:?} has a '*' that does not end it: a '*' stands for any ending and can only be the last \
                 character, as in submit:emails*"
            ),
            RuleError::Name(rule) => write!(
                f,
                "{rule:?} names what can be no queue or room: names are 1 to {NAME_BYTES_MAX} letters, digits, \
                 '_', '-' or '.', not beginning with '.'"
            ),
            RuleError::TooMany(count) => write!(
                f,
                "{count} rules are too many: at most {RULES_MAX}; a prefix, as in submit:emails*, stands for many names"
            ),
        }
    }
}

impl std::error::Error for RuleError {}

impl Rule {
    /// Parses `ACTION:NAME`, `ACTION:PREFIX*` or `ACTION:*`.
    pub fn parse(text: &str) -> Result<Rule, RuleError> {
        let shown = || text.chars().take(64).collect::<String>();
        let (action, name) = text.split_once(':').ok_or_else(|| RuleError::NoColon(shown()))?;
        let action = Action::parse(action).ok_or_else(|| RuleError::NoAction(shown()))?;
        let names = match name.strip_suffix('*') {
            _ if name.is_empty() => return Err(RuleError::NoName(shown())),
            Some(prefix) if prefix.contains('*') => return Err(RuleError::Star(shown())),
            // A text that could begin a name is a name itself, or nothing yet.
            Some(prefix) if prefix.is_empty() || QueueName::parse(prefix).is_ok() => {
                Names::Beginning(prefix.into())
            }
            Some(_) => return Err(RuleError::Name(shown())),
            None if name.contains('*') => return Err(RuleError::Star(shown())),
            None => Names::Exactly(QueueName::parse(name).map_err(|_| RuleError::Name(shown()))?),
        };
        Ok(Rule { action, names })
    }

    /// The action it is about.
    pub fn action(&self) -> Action {
        self.action
    }

    fn covers(&self, name: &str) -> bool {
        match &self.names {
            Names::Exactly(exact) => exact.as_str() == name,
            Names::Beginning(prefix) => name.starts_with(&**prefix),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.names {
            Names::Exactly(name) => write!(f, "{}:{name}", self.action),
            Names::Beginning(prefix) => write!(f, "{}:{prefix}*", self.action),
        }
    }
}

/// What one account may do. What no rule allows is forbidden; there are no rules that forbid.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grants {
    /// In order and each once, so that equal permissions are equal values.
    rules: Vec<Rule>,
}

impl Grants {
    /// Everything, on every name.
    pub fn all() -> Grants {
        Grants {
            rules: Action::ALL
                .into_iter()
                .map(|action| Rule { action, names: Names::Beginning("".into()) })
                .collect(),
        }
    }

    /// These rules; the same one twice is no error.
    pub fn new(rules: impl IntoIterator<Item = Rule>) -> Result<Grants, RuleError> {
        let mut rules: Vec<Rule> = rules.into_iter().collect();
        rules.sort_unstable();
        rules.dedup();
        if rules.len() > RULES_MAX {
            return Err(RuleError::TooMany(rules.len()));
        }
        Ok(Grants { rules })
    }

    /// Parses each text as a rule; the first that is none ends it.
    pub fn parse<'a>(rules: impl IntoIterator<Item = &'a str>) -> Result<Grants, RuleError> {
        Grants::new(rules.into_iter().map(Rule::parse).collect::<Result<Vec<_>, _>>()?)
    }

    /// Whether `action` is allowed on the queue or room `name`.
    pub fn may(&self, action: Action, name: &str) -> bool {
        self.rules.iter().any(|rule| rule.action.implies(action) && rule.covers(name))
    }

    /// Whether `action` is allowed on some name: for what lists, and leaves out what may not be seen.
    pub fn may_any(&self, action: Action) -> bool {
        self.rules.iter().any(|rule| rule.action.implies(action))
    }

    /// Whether `action` is allowed on every name: for what cannot leave anything out.
    pub fn may_every(&self, action: Action) -> bool {
        // Only the empty prefix covers the empty text, which is nobody's name.
        self.may(action, "")
    }

    /// The rules, in order.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

impl fmt::Display for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, rule) in self.rules.iter().enumerate() {
            write!(f, "{}{rule}", if nth == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(rules: &[&str]) -> Grants {
        Grants::parse(rules.iter().copied()).unwrap()
    }

    #[test]
    fn a_rule_reads_back_as_it_was_written() {
        for text in
            ["submit:emails", "consume:emails*", "observe:*", "manage:a.b-c_D9", "submit:_", "submit:-*"]
        {
            assert_eq!(Rule::parse(text).unwrap().to_string(), text);
        }
        let longest = format!("submit:{}", "x".repeat(NAME_BYTES_MAX));
        assert_eq!(Rule::parse(&longest).unwrap().to_string(), longest);
        assert!(Rule::parse(&(longest + "*")).is_ok());
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_reason() {
        let refused = |text: &str, word: &str| {
            let error = Rule::parse(text).unwrap_err().to_string();
            assert!(error.contains(word), "{text:?}: {error}");
        };
        refused("", "ACTION:NAME");
        refused("emails", "submit:emails");
        refused("*", "ACTION:NAME");
        refused("read:emails", "submit, consume, observe or manage");
        refused("Submit:emails", "submit, consume");
        refused(" submit:emails", "submit, consume");
        refused("*:*", "submit, consume");
        refused(":emails", "submit, consume");
        refused("submit:", "names nothing");
        refused("submit:*mails", "last");
        refused("submit:e*s", "last");
        refused("submit:**", "last");
        refused("submit:e**", "last");
        refused("submit:.hidden", "beginning with '.'");
        refused("submit:.*", "beginning with '.'");
        refused("submit:a b", "letters");
        refused("submit:a:b", "letters");
        refused("submit:é*", "letters");
        refused(&format!("submit:{}", "x".repeat(NAME_BYTES_MAX + 1)), "128");
        refused(&format!("submit:{}*", "x".repeat(NAME_BYTES_MAX + 1)), "128");
        assert!(Rule::parse(&"x".repeat(1 << 20)).unwrap_err().to_string().len() < 200);
    }

    /// All texts of at most `length` of these characters.
    fn texts(characters: &str, length: usize) -> Vec<String> {
        let mut all = vec![String::new()];
        let mut begin = 0;
        for _ in 0..length {
            let end = all.len();
            for nth in begin..end {
                all.extend(characters.chars().map(|c| format!("{}{c}", all[nth])).collect::<Vec<_>>());
            }
            begin = end;
        }
        all
    }

    #[test]
    fn every_small_rule_covers_just_what_it_says() {
        let names: Vec<String> =
            texts("ab.", 4).into_iter().filter(|name| QueueName::parse(name).is_ok()).collect();
        let mut rules = 0;
        for pattern in texts("ab.*", 4) {
            let whole_name = QueueName::parse(&pattern).is_ok();
            let prefix = pattern.strip_suffix('*').filter(|p| p.is_empty() || QueueName::parse(p).is_ok());
            for ruled in Action::ALL {
                let rule = Rule::parse(&format!("{ruled}:{pattern}"));
                assert_eq!(rule.is_ok(), whole_name || prefix.is_some(), "{pattern}");
                let Ok(rule) = rule else { continue };
                rules += 1;
                let grants = Grants::new([rule]).unwrap();
                for action in Action::ALL {
                    let implied = ruled == action || (ruled == Action::Manage && action == Action::Observe);
                    assert_eq!(grants.may_any(action), implied);
                    assert_eq!(grants.may_every(action), implied && pattern == "*");
                    for name in &names {
                        let named = prefix.map_or(pattern == *name, |prefix| name.starts_with(prefix));
                        assert_eq!(
                            grants.may(action, name),
                            implied && named,
                            "{ruled}:{pattern} {action} {name}"
                        );
                    }
                }
            }
        }
        assert!(rules > 400, "{rules}");
    }

    #[test]
    fn more_rules_never_allow_less_and_never_more_than_one_of_them_allows() {
        let some: Vec<Rule> = ["submit:a", "submit:a*", "consume:b", "manage:a", "manage:*", "observe:ab"]
            .into_iter()
            .map(|text| Rule::parse(text).unwrap())
            .collect();
        for set in 0_u32..1 << some.len() {
            let chosen: Vec<Rule> = some
                .iter()
                .enumerate()
                .filter(|(nth, _)| set >> nth & 1 == 1)
                .map(|(_, r)| r.clone())
                .collect();
            let together = Grants::new(chosen.iter().rev().cloned()).unwrap();
            for action in Action::ALL {
                for name in ["a", "ab", "b", "c"] {
                    let alone =
                        chosen.iter().any(|rule| Grants::new([rule.clone()]).unwrap().may(action, name));
                    assert_eq!(together.may(action, name), alone);
                }
            }
        }
    }

    #[test]
    fn nothing_is_allowed_by_nothing_and_everything_by_all() {
        for action in Action::ALL {
            assert!(!Grants::default().may_any(action) && !Grants::default().may(action, "q"));
            assert!(Grants::all().may(action, "q") && Grants::all().may_every(action));
            assert_eq!(Action::parse(action.as_str()), Some(action));
        }
    }

    #[test]
    fn equal_permissions_are_equal_and_too_many_are_refused() {
        assert_eq!(grants(&["submit:a", "consume:b", "submit:a"]), grants(&["consume:b", "submit:a"]));
        assert_ne!(grants(&["submit:a"]), grants(&["submit:a*"]));
        assert_eq!(grants(&["manage:*", "submit:a"]).to_string(), "submit:a manage:*");
        let many: Vec<String> = (0..=RULES_MAX).map(|n| format!("submit:q{n}")).collect();
        let refused = Grants::parse(many.iter().map(String::as_str)).unwrap_err();
        assert_eq!(refused, RuleError::TooMany(RULES_MAX + 1));
    }
}
