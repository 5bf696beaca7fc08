//! The hub's client against a hub on this machine.

mod common;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::{COMMIT, FakeHub, Faults, REPO, etag, files};
use silicide_cli::hub::{Config, Error, Hub, RepoName, Snapshot, Timeouts};
use silicide_cli::progress::Progress;
use tempfile::TempDir;

/// A hub, and a client with an empty cache.
struct Fixture {
    server: FakeHub,
    folder: TempDir,
    config: Config,
}

impl Fixture {
    fn new() -> Self {
        let (server, folder) = (FakeHub::new(), tempfile::tempdir().unwrap());
        let timeouts = Timeouts {
            probe: Duration::from_secs(20),
            answer: Duration::from_secs(20),
            silence: Duration::from_secs(20),
            retry: Duration::from_millis(1),
        };
        let config =
            Config { endpoint: server.url(), token: None, cache: folder.path().join("hub"), offline: false, timeouts };
        Self { server, folder, config }
    }

    fn hub(&self) -> Hub {
        Hub::new(self.config.clone())
    }

    fn pull(&self, name: &str) -> Result<Snapshot, Error> {
        self.hub().pull(&name.parse().unwrap(), Progress::Silent)
    }

    fn repo(&self) -> std::path::PathBuf {
        self.config.cache.join("models--someone--tiny-model")
    }

    fn weights_blob(&self) -> std::path::PathBuf {
        self.repo().join("blobs").join(etag("model.safetensors", &files()["model.safetensors"]))
    }

    fn incomplete(&self) -> std::path::PathBuf {
        self.weights_blob().with_added_extension("incomplete")
    }

    /// The weights are where they belong, and nothing is left over.
    fn assert_whole(&self, snapshot: &Path) {
        for (name, bytes) in files() {
            let path = snapshot.join(name);
            if name == "README.md" {
                assert!(!path.exists());
            } else {
                assert!(fs::read(&path).unwrap() == bytes, "{name}");
            }
        }
        let leftover =
            fs::read_dir(self.repo().join("blobs")).unwrap().flatten().find(|entry| entry.path().extension().is_some());
        assert!(leftover.is_none(), "{leftover:?}");
    }
}

#[test]
fn a_model_lands_in_the_layout_of_the_python_tools() {
    let it = Fixture::new();
    let got = it.pull(REPO).unwrap();
    assert_eq!(got.path, it.repo().join("snapshots").join(COMMIT));
    assert_eq!(got.commit, COMMIT);
    let mut wanted = files();
    wanted.remove("README.md");
    assert_eq!(got.downloaded, wanted.values().map(|bytes| bytes.len() as u64).sum::<u64>());
    it.assert_whole(&got.path);
    assert_eq!(fs::read_to_string(it.repo().join("refs/main")).unwrap(), COMMIT);
    for (name, bytes) in wanted {
        let blob = it.repo().join("blobs").join(etag(name, &bytes));
        assert!(fs::read(blob).unwrap() == bytes, "{name}");
    }
    #[cfg(unix)]
    {
        let link = fs::read_link(got.path.join("sub/extra é.json")).unwrap();
        assert!(link.starts_with("../../../blobs"), "{link:?} is not relative");
        assert!(fs::read_link(got.path.join("config.json")).unwrap().starts_with("../../blobs"));
    }
}

/// A firewall may let the hub through and not the host of its large files.
#[test]
fn a_host_of_files_that_never_answers_is_given_up_at_once() {
    let mut it = Fixture::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address: &'static str = format!("http://{}", silent.local_addr().unwrap()).leak();
    it.server.fault(|faults| faults.redirect_to = Some(format!("{address}/model.safetensors").leak()));
    it.config.timeouts.probe = Duration::from_secs(1);
    let begun = Instant::now();
    let error = it.pull(REPO).unwrap_err();
    assert!(matches!(&error, Error::Unreachable { endpoint, .. } if endpoint == address), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn what_is_there_is_not_fetched_again() {
    let it = Fixture::new();
    it.pull(REPO).unwrap();
    it.server.requests();
    let again = it.pull(REPO).unwrap();
    assert_eq!(again.downloaded, 0);
    assert_eq!(it.server.requests().len(), 1, "one question for the newest commit");
}

#[test]
fn the_cache_is_used_without_asking() {
    let mut it = Fixture::new();
    let name: RepoName = REPO.parse().unwrap();
    assert_eq!(it.hub().cached(&name), None);
    it.config.offline = true;
    assert!(matches!(it.pull(REPO), Err(Error::Offline { .. })));
    it.config.offline = false;
    let path = it.pull(REPO).unwrap().path;
    it.server.requests();

    it.config.offline = true;
    assert_eq!(it.hub().cached(&name), Some(path.clone()));
    assert_eq!(it.pull(REPO).unwrap().path, path);
    assert_eq!(it.pull(&format!("{REPO}@{COMMIT}")).unwrap().path, path);
    assert_eq!(it.hub().repositories(), [REPO]);
    assert_eq!(it.server.requests(), []);

    fs::remove_file(it.weights_blob()).unwrap();
    assert_eq!(it.hub().cached(&name), None, "a link to a blob that is gone");
}

#[test]
fn a_cut_connection_is_taken_up_where_it_broke() {
    let it = Fixture::new();
    it.server.fault(|faults| faults.cut = Some((100_000, 2)));
    let got = it.pull(REPO).unwrap();
    it.assert_whole(&got.path);
    let ranges: Vec<_> =
        it.server.requests().into_iter().filter(|r| r.path == "/model.safetensors").map(|r| r.range).collect();
    assert_eq!(ranges, [None, Some("bytes=100000-".into()), Some("bytes=200000-".into())]);
}

#[test]
fn the_next_run_takes_up_what_an_earlier_one_left() {
    let it = Fixture::new();
    it.server.fault(|faults| {
        faults.cut = Some((0, usize::MAX));
    });
    assert!(matches!(it.pull(REPO), Err(Error::Broken { got: 0, size: 300_000, .. })));
    assert_eq!(it.hub().cached(&REPO.parse().unwrap()), None);

    it.server.fault(|faults| faults.cut = Some((120_000, 1)));
    fs::write(it.incomplete(), &files()["model.safetensors"][..50_000]).unwrap();
    let got = it.pull(REPO).unwrap();
    it.assert_whole(&got.path);
    assert_eq!(got.downloaded, 250_000);
}

#[test]
fn a_damaged_beginning_is_thrown_away_once() {
    let it = Fixture::new();
    fs::create_dir_all(it.incomplete().parent().unwrap()).unwrap();
    for beginning in [vec![0; 50_000], vec![0; 300_000], vec![0; 400_000]] {
        fs::write(it.incomplete(), beginning).unwrap();
        let got = it.pull(REPO).unwrap();
        it.assert_whole(&got.path);
        fs::remove_file(it.weights_blob()).unwrap();
    }
}

#[test]
fn a_server_without_ranges_starts_over() {
    let it = Fixture::new();
    it.server.fault(|faults| {
        faults.cut = Some((100_000, 1));
        faults.ignore_range = true;
    });
    let got = it.pull(REPO).unwrap();
    it.assert_whole(&got.path);
}

#[test]
fn a_wrong_hash_leaves_nothing() {
    let it = Fixture::new();
    it.server.fault(|faults| faults.corrupt = usize::MAX);
    let error = it.pull(REPO).unwrap_err();
    assert!(matches!(&error, Error::Damaged { file, .. } if file == "model.safetensors"), "{error}");
    assert!(!it.weights_blob().exists() && !it.incomplete().exists());
    assert_eq!(it.hub().cached(&REPO.parse().unwrap()), None);
    it.server.fault(|faults| faults.corrupt = 0);
    it.assert_whole(&it.pull(REPO).unwrap().path);
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let mut it = Fixture::new();
    it.config.token = Some("hf_secret".into());
    it.server.fault(|faults| faults.token = Some("hf_secret"));
    it.assert_whole(&it.pull(REPO).unwrap().path);
    let (stored, hub): (Vec<_>, Vec<_>) =
        it.server.requests().into_iter().partition(|r| r.path == "/model.safetensors");
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].token, None);
    assert!(hub.iter().all(|r| r.token.as_deref() == Some("hf_secret")), "{hub:?}");
}

#[test]
fn refusals_say_what_to_do() {
    let cases: [(u16, &str, &str); 8] = [
        (401, "", "set HF_TOKEN"),
        (404, "RepoNotFound", "check the name"),
        (404, "RevisionNotFound", "no revision `v9`"),
        (403, "", "accept its terms"),
        (401, "GatedRepo", "accept its terms"),
        (429, "", "wait 7 seconds"),
        (503, "", "try again later"),
        (418, "", "418"),
    ];
    let it = Fixture::new();
    for (status, code, hint) in cases {
        it.server.fault(|faults| faults.api_status = Some((status, code)));
        let error = it.pull(&format!("{REPO}@v9")).unwrap_err().to_string();
        assert!(error.contains(hint), "{status} {code}: {error}");
        assert!(!it.config.cache.exists(), "{status} left something in the cache");
    }
    assert!(matches!(it.pull("someone/else"), Err(Error::NoRepository { with_token: false, .. })));
}

#[test]
fn a_token_that_does_not_open_is_not_asked_for_again() {
    let mut it = Fixture::new();
    it.config.token = Some("hf_wrong".into());
    it.server.fault(|faults| faults.token = Some("hf_secret"));
    let error = it.pull(REPO).unwrap_err();
    assert!(matches!(error, Error::NoRepository { with_token: true, .. }));
    assert!(!error.to_string().contains("hf_wrong") && !error.to_string().contains("set HF_TOKEN"), "{error}");
}

#[test]
fn a_silent_hub_costs_no_more_than_the_deadline() {
    let mut it = Fixture::new();
    it.config.timeouts.probe = Duration::from_millis(300);
    for stall in [|faults: &mut Faults| faults.stall_api = true, |faults: &mut Faults| faults.stall_head = true] {
        it.server.fault(|faults| *faults = Faults::default());
        it.server.fault(stall);
        let begun = Instant::now();
        assert!(matches!(it.pull(REPO), Err(Error::Unreachable { .. })));
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
    assert!(Timeouts::default().probe < Duration::from_secs(5));
}

#[test]
fn nobody_there_is_said_at_once() {
    let mut it = Fixture::new();
    // Port 1 of this machine: refused, not silent.
    it.config.endpoint = "http://127.0.0.1:1".into();
    let error = it.pull(REPO).unwrap_err();
    assert!(matches!(&error, Error::Unreachable { endpoint, .. } if endpoint == "http://127.0.0.1:1"), "{error}");
}

#[test]
fn a_download_that_falls_silent_is_given_up_and_kept() {
    let mut it = Fixture::new();
    it.config.timeouts.silence = Duration::from_millis(200);
    it.server.fault(|faults| faults.stall_file = true);
    // Each attempt brings half of what is left, so that it takes a while until one brings nothing.
    let error = it.pull(REPO).unwrap_err();
    assert!(matches!(&error, Error::Broken { reason, .. } if reason == "no answer in time"), "{error}");
    assert!(fs::metadata(it.incomplete()).unwrap().len() > 150_000);
    assert!(!it.weights_blob().exists());
}

#[test]
fn one_of_two_processes_downloads() {
    let it = Fixture::new();
    it.server.fault(|faults| faults.delay = Duration::from_millis(300));
    let (a, b) = thread::scope(|scope| {
        let other = scope.spawn(|| it.pull(REPO));
        (it.pull(REPO).unwrap(), other.join().unwrap().unwrap())
    });
    it.assert_whole(&a.path);
    assert_eq!(a.path, b.path);
    let fetched = it.server.requests().into_iter().filter(|r| r.path == "/model.safetensors").count();
    assert_eq!(fetched, 1);
}

#[test]
fn a_hub_that_contradicts_itself_is_not_believed() {
    let it = Fixture::new();
    it.server.fault(|faults| faults.commit = Some("ffffffffffffffffffffffffffffffffffffffff"));
    assert!(matches!(it.pull(REPO), Err(Error::Protocol { .. })));

    it.server.fault(|faults| {
        faults.commit = None;
        faults.redirect_to = Some("file:///etc/passwd");
    });
    assert!(matches!(it.pull(REPO), Err(Error::Protocol { .. })));
}

#[test]
fn a_repository_without_a_model_says_what_it_has() {
    let it = Fixture::new();
    it.server.state().files = [("README.md", vec![]), ("x-Q4_0.gguf", vec![7; 1000])].into();
    let error = it.pull(REPO).unwrap_err().to_string();
    assert!(error.contains("someone/tiny-model/x-Q4_0.gguf"), "{error}");
    let got = it.pull(&format!("{REPO}/x-Q4_0.gguf")).unwrap();
    assert_eq!(fs::read(got.path).unwrap(), vec![7; 1000]);
    let error = it.pull(&format!("{REPO}/y.gguf")).unwrap_err().to_string();
    assert!(error.contains("no whole y.gguf") && error.contains("x-Q4_0.gguf"), "{error}");
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let mut it = Fixture::new();
    let file = it.folder.path().join("file");
    fs::write(&file, "").unwrap();
    it.config.cache = file.join("hub");
    let error = it.pull(REPO).unwrap_err();
    assert!(matches!(&error, Error::Io { path, .. } if path.starts_with(&file)), "{error}");
}
