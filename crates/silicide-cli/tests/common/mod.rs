//! A hub on this machine: a listener that speaks the routes a client needs, with faults to order.
#![allow(missing_docs, dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub const REPO: &str = "someone/tiny-model";

/// What the hub does wrong.
#[derive(Default, Clone)]
pub struct Faults {
    /// The status of the description of a revision, and the `X-Error-Code` with it.
    pub api_status: Option<(u16, &'static str)>,
    /// Contents are open only to who brings this token.
    pub token: Option<&'static str>,
    /// The connection is cut after so many bytes of a large file, so many times.
    pub cut: Option<(usize, usize)>,
    /// The first byte of large files is changed, so many times.
    pub corrupt: usize,
    /// Nothing is ever answered.
    pub stall_api: bool,
    /// Nobody is told what a file is.
    pub stall_head: bool,
    /// Large files stop half-way, and the connection stays open.
    pub stall_file: bool,
    /// `Range` is not heeded.
    pub ignore_range: bool,
    /// Large files take this long.
    pub delay: Duration,
    /// Whether the redirect to large files is to an address that is not https.
    pub redirect_to: Option<&'static str>,
    /// What is called a file's commit.
    pub commit: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub range: Option<String>,
    pub token: Option<String>,
}

#[derive(Default)]
pub struct State {
    pub files: BTreeMap<&'static str, Vec<u8>>,
    pub faults: Faults,
    pub log: Vec<Request>,
}

/// The hub, and the other host that it keeps large files on.
pub struct FakeHub {
    pub state: Arc<Mutex<State>>,
    hub: Listener,
    store: Listener,
}

impl FakeHub {
    /// With a small model in it.
    pub fn new() -> Self {
        let state = Arc::new(Mutex::new(State { files: files(), ..State::default() }));
        let store = Listener::new(state.clone(), None);
        let hub = Listener::new(state.clone(), Some(store.address));
        Self { state, hub, store }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.hub.address)
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn fault(&self, set: impl FnOnce(&mut Faults)) {
        set(&mut self.state().faults);
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state().log)
    }
}

/// Small files, and one large one as the hub has it.
pub fn files() -> BTreeMap<&'static str, Vec<u8>> {
    let weights: Vec<u8> = (0..300_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    BTreeMap::from([
        ("README.md", b"not needed".to_vec()),
        ("config.json", br#"{"model_type":"llama"}"#.to_vec()),
        ("model.safetensors", weights),
        ("sub/extra é.json", b"{}".to_vec()),
        ("tokenizer.json", b"{\"version\":\"1.0\"}\n".to_vec()),
    ])
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// What names a file of the repository in the cache.
pub fn etag(name: &str, bytes: &[u8]) -> String {
    if is_large(name) {
        return sha256(bytes);
    }
    let blob = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, &blob).as_ref())
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors") || name.ends_with(".gguf")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

struct Listener {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Listener {
    /// The hub where `store` is another host, else that host.
    fn new(state: Arc<Mutex<State>>, store: Option<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(SeqCst) {
                    return;
                }
                let (state, stopped) = (state.clone(), stopped.clone());
                thread::spawn(move || {
                    // A client that leaves early is part of some tests.
                    let _ = Connection { stream: stream?, state, store, head_only: false, stopped }.serve();
                    Ok::<_, std::io::Error>(())
                });
            }
        });
        Self { address, stop }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

struct Connection {
    stream: TcpStream,
    state: Arc<Mutex<State>>,
    store: Option<SocketAddr>,
    head_only: bool,
    stopped: Arc<AtomicBool>,
}

impl Connection {
    fn serve(mut self) -> std::io::Result<()> {
        let request = self.read_request()?;
        self.head_only = request.method == "HEAD";
        let (files, faults) = {
            let mut state = self.state.lock().unwrap();
            state.log.push(request.clone());
            (state.files.clone(), state.faults.clone())
        };
        let Some(store) = self.store else {
            return self.serve_stored(&request, &files, &faults);
        };
        if faults.token.is_some_and(|token| request.token.as_deref() != Some(token)) {
            return self.answer(401, &[], b"Invalid username or password.");
        }
        if request.path.starts_with(&format!("/api/models/{REPO}/revision/")) {
            if faults.stall_api {
                return self.stall();
            }
            if let Some((status, code)) = faults.api_status {
                return self.answer(status, &[("X-Error-Code", code), ("Retry-After", "7")], b"{\"error\":\"no\"}");
            }
            let names: Vec<String> = files.keys().map(|name| format!("{{\"rfilename\":\"{name}\"}}")).collect();
            let body = format!("{{\"id\":\"{REPO}\",\"sha\":\"{COMMIT}\",\"siblings\":[{}]}}", names.join(","));
            return self.answer(200, &[("Content-Type", "application/json")], body.as_bytes());
        }
        let prefix = format!("/{REPO}/resolve/{COMMIT}/");
        let name = request.path.strip_prefix(&prefix).map(|name| name.replace("%20", " ").replace("%C3%A9", "é"));
        let Some((name, bytes)) = name.and_then(|name| files.get_key_value(name.as_str())) else {
            return self.answer(404, &[("X-Error-Code", "RepoNotFound")], b"Repository not found");
        };
        if faults.stall_head && self.head_only {
            return self.stall();
        }
        let etag = format!("\"{}\"", etag(name, bytes));
        let commit = ("X-Repo-Commit", faults.commit.unwrap_or(COMMIT));
        if !is_large(name) {
            return self.answer(200, &[commit, ("ETag", &etag)], bytes);
        }
        let location = match faults.redirect_to {
            Some(address) => address.to_owned(),
            None => format!("http://{store}/{name}"),
        };
        let size = bytes.len().to_string();
        self.answer(302, &[commit, ("X-Linked-Etag", &etag), ("X-Linked-Size", &size), ("Location", &location)], b"")
    }

    fn serve_stored(
        &mut self,
        request: &Request,
        files: &BTreeMap<&str, Vec<u8>>,
        faults: &Faults,
    ) -> std::io::Result<()> {
        let Some(bytes) = files.get(request.path.trim_start_matches('/')) else {
            return self.answer(404, &[], b"");
        };
        thread::sleep(faults.delay);
        let start: usize = match &request.range {
            Some(range) if !faults.ignore_range => {
                range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap()
            }
            _ => 0,
        };
        let mut body = bytes[start..].to_vec();
        let mut end = body.len();
        {
            let faults = &mut self.state.lock().unwrap().faults;
            if start == 0 && faults.corrupt > 0 {
                faults.corrupt -= 1;
                body[0] ^= 1;
            }
            if let Some((at, times)) = faults.cut.filter(|cut| cut.1 > 0) {
                faults.cut = Some((at, times - 1));
                end = end.min(at);
            }
            if faults.stall_file {
                end /= 2;
            }
        }
        let head = match start {
            0 => "HTTP/1.1 200 OK\r\n".to_owned(),
            _ => format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{}\r\n",
                bytes.len() - 1,
                bytes.len()
            ),
        };
        write!(self.stream, "{head}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
        self.stream.write_all(&body[..end])?;
        self.stream.flush()?;
        if faults.stall_file { self.stall() } else { Ok(()) }
    }

    fn read_request(&mut self) -> std::io::Result<Request> {
        let mut lines = BufReader::new(&self.stream).lines();
        let first = lines.next().unwrap_or_else(|| Err(std::io::ErrorKind::UnexpectedEof.into()))?;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let mut request = Request { method, path, range: None, token: None };
        for line in lines {
            let line = line?;
            match line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned())) {
                None => break,
                Some((name, value)) if name == "range" => request.range = Some(value),
                Some((name, value)) if name == "authorization" => {
                    request.token = Some(value.trim_start_matches("Bearer ").to_owned())
                }
                Some(_) => {}
            }
        }
        Ok(request)
    }

    fn answer(&mut self, status: u16, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<()> {
        write!(self.stream, "HTTP/1.1 {status} Whatever\r\nConnection: close\r\n")?;
        for (name, value) in headers {
            write!(self.stream, "{name}: {value}\r\n")?;
        }
        write!(self.stream, "Content-Length: {}\r\n\r\n", body.len())?;
        if self.head_only { Ok(()) } else { self.stream.write_all(body) }
    }

    /// Keeps the connection open until the client gives up or the test is over.
    fn stall(&mut self) -> std::io::Result<()> {
        self.stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        while !self.stopped.load(SeqCst) && !matches!(self.stream.read(&mut [0]), Ok(0)) {}
        Ok(())
    }
}
