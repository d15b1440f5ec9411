//! A headless Chromium for the tests of the page, by its DevTools protocol over a pipe: no port, no driver.
//!
//! What must hold: it ends with the process of the tests, however that ends. It does, since its pipe does.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};

/// A browser with one page.
pub struct Browser {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    profile: PathBuf,
    session: Option<String>,
    id: u64,
    /// Errors of scripts, and what the page was not allowed to load.
    pub errors: Vec<String>,
}

/// Where it is on this machine: `CHROMIUM` names it, or else its usual names are looked for.
fn binary() -> PathBuf {
    if let Some(named) = std::env::var_os("CHROMIUM") {
        return named.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let mut found = names.iter().flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)));
    let applications = ["/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"].map(PathBuf::from);
    found.find(|file| file.exists()).or_else(|| applications.into_iter().find(|file| file.exists())).unwrap_or_else(
        || panic!("no Chromium was found: install it (apt-get install chromium), or set CHROMIUM to its binary"),
    )
}

impl Browser {
    /// Starts it, with a page of that size in light or dark.
    #[must_use]
    pub fn start(width: u32, height: u32, dark: bool) -> Self {
        static STARTED: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = STARTED.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let profile = std::env::temp_dir().join(format!("private-chromium-{}-{number}", std::process::id()));
        let mut process = Command::new("sh")
            // It reads commands from descriptor 3 and answers to descriptor 4.
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>/dev/null"#])
            .arg(binary())
            .args(["--headless=new", "--remote-debugging-pipe", "--no-first-run", "--disable-gpu"])
            // The tests may run as root, and what it shows is the service's own page.
            .args(["--no-sandbox", "--disable-dev-shm-usage"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh");
        let commands = process.stdin.take().expect("pipe");
        let answers = BufReader::new(process.stdout.take().expect("pipe"));
        let mut browser = Browser { process, commands, answers, profile, session: None, id: 0, errors: Vec::new() };
        let target = browser.command("Target.createTarget", &json!({ "url": "about:blank" }));
        let session =
            browser.command("Target.attachToTarget", &json!({ "targetId": target["targetId"], "flatten": true }));
        browser.session = Some(session["sessionId"].as_str().expect("a session").to_owned());
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.command(domain, &json!({}));
        }
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        browser.command("Emulation.setDeviceMetricsOverride", &metrics);
        let scheme = json!({ "name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" } });
        browser.command("Emulation.setEmulatedMedia", &json!({ "features": [scheme] }));
        browser
    }

    fn command(&mut self, method: &str, parameters: &Value) -> Value {
        self.id += 1;
        let mut message = json!({ "id": self.id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).expect("Chromium takes no commands");
        loop {
            let mut answer = Vec::new();
            self.answers.read_until(0, &mut answer).expect("Chromium does not answer");
            answer.pop();
            let answer: Value = serde_json::from_slice(&answer).unwrap_or_else(|_| panic!("Chromium has ended"));
            if answer["id"] == self.id {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
            let parameters = &answer["params"];
            match answer["method"].as_str() {
                Some("Runtime.exceptionThrown") => self.errors.push(parameters["exceptionDetails"].to_string()),
                Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                    self.errors.push(parameters["entry"].to_string());
                }
                _ => {}
            }
        }
    }

    /// Goes to the address.
    pub fn go(&mut self, url: &str) {
        self.command("Page.navigate", &json!({ "url": url }));
    }

    /// The value of an expression of JavaScript.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.command("Runtime.evaluate", &parameters);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until the expression is true.
    pub fn until(&mut self, expression: &str, patience: Duration) {
        let started = Instant::now();
        while self.value(expression) != true {
            let text = || "document.body.innerText";
            assert!(started.elapsed() < patience, "{expression}: not so after {patience:?}: {}", self.value(text()));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A picture of the whole page.
    pub fn picture(&mut self, file: &Path) {
        let answer = self.command("Page.captureScreenshot", &json!({ "captureBeyondViewport": true }));
        let picture = BASE64_STANDARD.decode(answer["data"].as_str().expect("a picture")).expect("base64");
        std::fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
        std::fs::write(file, picture).expect("written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        // Its helpers end a moment after it.
        for _ in 0..20 {
            if std::fs::remove_dir_all(&self.profile).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
