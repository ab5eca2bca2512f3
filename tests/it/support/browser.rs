//! Chromium without a window, driven over WebDriver (W3C), which is JSON over HTTP.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::eventually;

/// Names the folder of `script/bootstrap browser`; `script/test` sets it. Without it, tests that
/// need a browser are left out.
const FOLDER: &str = "REGISTRAR_BROWSER_DIR";
/// How long a page may take, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// The key of an element in WebDriver's JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with a profile of its own. It ends with this value.
#[derive(Debug)]
pub struct Browser {
    client: Client,
    session: String,
    driver: Child,
    folder: TempDir,
    axe: String,
}

impl Browser {
    /// Starts one; `None` where none is installed for tests.
    pub async fn start() -> Option<Self> {
        let installed = PathBuf::from(std::env::var_os(FOLDER)?);
        let axe = std::fs::read_to_string(installed.join("package/axe.min.js")).unwrap();
        super::install_crypto();
        let folder = TempDir::new().unwrap();
        let mut driver = Command::new("chromedriver")
            .args(["--port=0", "--log-level=SEVERE"])
            .env("HOME", folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver is installed: script/bootstrap browser");
        let port = port(&mut driver);
        let client = Client::builder().no_proxy().build().unwrap();
        let mut browser =
            Self { client, session: format!("http://127.0.0.1:{port}"), driver, folder, axe };
        let value =
            browser.call(Method::POST, "/session", capabilities(browser.folder.path())).await;
        let id = value["sessionId"].as_str().expect("a session").to_owned();
        browser.session = format!("{}/session/{id}", browser.session);
        Some(browser)
    }

    async fn try_call(&self, method: Method, path: &str, body: Value) -> Result<Value, String> {
        let request = self.client.request(method.clone(), format!("{}{path}", self.session));
        let request = if method == Method::GET { request } else { request.json(&body) };
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        match answer["value"]["error"].as_str() {
            Some(error) => Err(format!("{error}: {}", answer["value"]["message"])),
            None => Ok(answer["value"].clone()),
        }
    }

    async fn call(&self, method: Method, path: &str, body: Value) -> Value {
        let answer = self.try_call(method, path, body).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// Opens a page.
    pub async fn open(&self, url: &str) {
        self.call(Method::POST, "/url", json!({ "url": url })).await;
    }

    /// The address of the page.
    pub async fn url(&self) -> String {
        self.call(Method::GET, "/url", json!(null)).await.as_str().unwrap().to_owned()
    }

    async fn element(&self, xpath: &str) -> String {
        eventually(&format!("{xpath} on the page"), LIMIT, async || {
            let query = json!({ "using": "xpath", "value": xpath });
            let found = self.try_call(Method::POST, "/element", query).await.ok()?;
            Some(found[ELEMENT].as_str().unwrap().to_owned())
        })
        .await
    }

    async fn click_element(&self, xpath: &str) {
        // A page that is about to change may take the element away between two calls.
        eventually(&format!("a click on {xpath}"), LIMIT, async || {
            let element = self.element(xpath).await;
            let path = format!("/element/{element}/click");
            self.try_call(Method::POST, &path, json!({})).await.ok()
        })
        .await;
    }

    /// Clicks the link that holds a text.
    pub async fn follow(&self, text: &str) {
        self.click_element(&format!("//a[contains(., '{text}')]")).await;
    }

    /// Clicks the button of this text.
    pub async fn press(&self, text: &str) {
        self.click_element(&format!("//button[normalize-space()='{text}']")).await;
    }

    /// Opens or closes what has this summary.
    pub async fn follow_summary(&self, text: &str) {
        self.click_element(&format!("//summary[contains(., '{text}')]")).await;
    }

    /// Types into the field with this name.
    pub async fn fill(&self, name: &str, text: &str) {
        let element = self.element(&format!("//*[@name='{name}']")).await;
        let _ = self.try_call(Method::POST, &format!("/element/{element}/clear"), json!({})).await;
        let keys = json!({ "text": text });
        self.call(Method::POST, &format!("/element/{element}/value"), keys).await;
    }

    /// Agrees to what the page asks.
    pub async fn agree(&self) {
        eventually("a question of the page", LIMIT, async || {
            self.try_call(Method::POST, "/alert/accept", json!({})).await.ok()
        })
        .await;
    }

    /// Waits until the page holds a text.
    pub async fn sees(&self, text: &str) {
        eventually(&format!("`{text}` on {}", self.url().await), LIMIT, async || {
            self.text().await.contains(text).then_some(())
        })
        .await;
    }

    /// What a person reads.
    pub async fn text(&self) -> String {
        let script = json!({ "script": "return document.body?.innerText ?? ''", "args": [] });
        let text = self.try_call(Method::POST, "/execute/sync", script).await;
        text.ok().and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Waits for a downloaded file and returns it.
    pub async fn downloaded(&self, ending: &str) -> Vec<u8> {
        let folder = self.folder.path().join("downloads");
        eventually(&format!("a downloaded {ending}"), LIMIT, async || {
            let files = std::fs::read_dir(&folder).ok()?.filter_map(Result::ok);
            let mut paths = files.map(|file| file.path());
            let path =
                paths.find(|path| path.to_str().is_some_and(|path| path.ends_with(ending)))?;
            // The browser holds the name with an empty file until it has the whole one.
            Some(std::fs::read(path).unwrap()).filter(|bytes| !bytes.is_empty())
        })
        .await
    }

    /// Checks the page with axe-core: no finding that is serious or critical.
    pub async fn is_accessible(&self) {
        let script = "const done = arguments[arguments.length - 1];
            axe.run(document).then(found => done(found.violations
                .filter(one => ['serious', 'critical'].includes(one.impact))
                .map(one => [one.id, one.help, one.nodes.map(node => node.html).slice(0, 5)])));";
        // Run by the driver, so the page's policy does not matter.
        let script = format!("{}\n{script}", self.axe);
        let body = json!({ "script": script, "args": [] });
        let found = self.call(Method::POST, "/execute/async", body).await;
        assert_eq!(found, json!([]), "on {}", self.url().await);
    }

    /// Shows pages as somebody who prefers dark, or light, sees them.
    pub async fn prefer_dark(&self, dark: bool) {
        let value = if dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": value }]);
        let command =
            json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } });
        self.call(Method::POST, "/goog/cdp/execute", command).await;
    }

    /// Sets the size of the window.
    pub async fn resize(&self, width: u32, height: u32) {
        let size = json!({ "width": width, "height": height });
        self.call(Method::POST, "/window/rect", size).await;
    }

    /// Whether the page is wider than the window.
    pub async fn is_wider_than_the_window(&self) -> bool {
        let script = "return document.documentElement.scrollWidth > innerWidth";
        let script = json!({ "script": script, "args": [] });
        self.call(Method::POST, "/execute/sync", script).await.as_bool().unwrap()
    }

    /// Checks what the browser noted since it started: no error, and no request to elsewhere.
    pub async fn was_quiet(&self, expected_errors: &[&str]) {
        let errors = self.call(Method::POST, "/se/log", json!({ "type": "browser" })).await;
        for entry in errors.as_array().unwrap() {
            let message = entry["message"].as_str().unwrap_or_default();
            let is_expected = expected_errors.iter().any(|text| message.contains(text));
            assert!(entry["level"] != "SEVERE" || is_expected, "{message}");
        }
        let log = self.call(Method::POST, "/se/log", json!({ "type": "performance" })).await;
        let mut requests = 0;
        for entry in log.as_array().unwrap() {
            let message: Value = serde_json::from_str(entry["message"].as_str().unwrap()).unwrap();
            if message["message"]["method"] != "Network.requestWillBeSent" {
                continue;
            }
            let url = message["message"]["params"]["request"]["url"].as_str().unwrap();
            let is_local =
                ["http://127.0.0.1:", "data:", "blob:"].iter().any(|s| url.starts_with(s));
            // The page that a new window shows belongs to the browser.
            let document = message["message"]["params"]["documentURL"].as_str().unwrap_or_default();
            let is_local = is_local || document.starts_with("chrome://new-tab-page");
            assert!(is_local, "a request left this machine: {url}");
            requests += 1;
        }
        assert!(requests > 0, "requests are seen");
    }
}

fn capabilities(folder: &Path) -> Value {
    let downloads = folder.join("downloads");
    std::fs::create_dir(&downloads).unwrap();
    let profile = format!("--user-data-dir={}", folder.join("profile").display());
    json!({ "capabilities": { "alwaysMatch": {
        "goog:chromeOptions": {
            "args": [
                "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                "--disable-background-networking", "--disable-component-update",
                "--disable-sync", "--disable-dev-shm-usage", "--window-size=1240,900",
                "--lang=en-GB", profile,
            ],
            "prefs": {
                "download.default_directory": downloads, "download.prompt_for_download": false,
            },
        },
        "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        "unhandledPromptBehavior": "ignore",
        "timeouts": { "script": 60_000, "pageLoad": 60_000 },
    } } })
}

/// The driver says where it listens.
fn port(driver: &mut Child) -> u16 {
    let lines = BufReader::new(driver.stdout.take().unwrap()).lines();
    for line in lines.map_while(Result::ok).take(20) {
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            return port.trim_end_matches('.').parse().unwrap();
        }
    }
    panic!("chromedriver did not say where it listens");
}

impl Drop for Browser {
    fn drop(&mut self) {
        let Self { session, driver, .. } = self;
        // The session's end closes the browser, which the driver's end would leave behind.
        let session = session.clone();
        std::thread::scope(|scope| {
            let ending = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(async {
                    let client = Client::builder().no_proxy().timeout(LIMIT).build();
                    let _ = client.expect("a client").delete(&session).send().await;
                });
            });
            let _ = ending.join();
        });
        let _ = driver.kill();
        let _ = driver.wait();
    }
}
