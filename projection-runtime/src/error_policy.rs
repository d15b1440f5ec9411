//! What a projection does at a failing event: stop, at once or after some tries, or pass it by.

use std::fmt;
use std::str::FromStr;

/// What is done at a failing event, while a projection is live and while it is rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct ErrorPolicy {
    /// By the running projection.
    pub live: OnError,
    /// By a rebuild or a verification.
    pub rebuild: OnError,
}

impl ErrorPolicy {
    /// The same, with another one for the running projection.
    #[must_use]
    pub fn live(mut self, on_error: OnError) -> Self {
        self.live = on_error;
        self
    }

    /// The same, with another one for rebuilds and verifications.
    #[must_use]
    pub fn rebuild(mut self, on_error: OnError) -> Self {
        self.rebuild = on_error;
        self
    }
}

/// What is done at a failing event. Written `stop`, `skip`, `retry(3)` or `retry(3)+skip`.
///
/// ```
/// use projection_runtime::OnError;
///
/// assert_eq!("retry(3)".parse(), Ok(OnError::STOP.after(3)));
/// assert_eq!("retry(3)+skip".parse(), Ok(OnError::SKIP.after(3)));
/// assert_eq!(OnError::STOP.to_string(), "stop");
/// assert!("retry".parse::<OnError>().unwrap_err().contains("retry(3)"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OnError {
    /// How often the event is tried again first, with growing waits: 50 ms, doubled up to 5 s.
    pub(crate) retries: u32,
    /// Then it is passed by, and that is written down in `readview_skips`; otherwise the projection stops at it.
    pub(crate) skip: bool,
}

impl OnError {
    /// Stop at the event until someone acts.
    pub const STOP: OnError = OnError { retries: 0, skip: false };
    /// Pass the event by, now and in each rebuild, and write that down.
    pub const SKIP: OnError = OnError { retries: 0, skip: true };

    /// The same, after the event was tried again so often.
    #[must_use]
    pub fn after(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }
}

impl fmt::Display for OnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.retries, self.skip) {
            (0, false) => f.write_str("stop"),
            (0, true) => f.write_str("skip"),
            (n, false) => write!(f, "retry({n})"),
            (n, true) => write!(f, "retry({n})+skip"),
        }
    }
}

impl FromStr for OnError {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let retries = |text: &str| text.strip_prefix("retry(")?.strip_suffix(')')?.parse().ok().filter(|n| *n > 0);
        let parsed = match text {
            "stop" => Some(OnError::STOP),
            "skip" => Some(OnError::SKIP),
            _ => match text.strip_suffix("+skip") {
                Some(text) => retries(text).map(|n| OnError::SKIP.after(n)),
                None => retries(text).map(|n| OnError::STOP.after(n)),
            },
        };
        parsed.ok_or_else(|| format!("`{text}` is none of stop, skip, retry(3) and retry(3)+skip"))
    }
}
