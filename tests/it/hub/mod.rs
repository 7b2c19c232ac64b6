//! Downloading a model from a hub, against a hub of our own on the loopback interface.

mod program;
mod server;

use std::{
    fs,
    path::{Path, PathBuf},
};

use candlewick::{
    error::Code,
    weights::{
        files::{ModelFiles, model_files},
        hub::{DownloadProgress, Found, HubOptions, resolve},
    },
};
use tokio::runtime::Runtime;

use self::server::{COMMIT, FakeHub, PULL_REQUEST, TOKEN, etag};

const MODEL: [(&str, &[u8]); 7] = [
    ("config.json", b"{}"),
    ("tokenizer.json", b"{\"t\":1}"),
    ("model.safetensors", &[7; 4096]),
    ("consolidated.safetensors", &[8; 4096]),
    ("original/model.safetensors", &[9; 4096]),
    ("tiny.gguf", b"GGUF"),
    ("README.md", b"read me"),
];

/// A file that no two parts of are alike.
fn large() -> Vec<u8> {
    (0..300_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

fn cache() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

fn find(model: &str, options: &HubOptions) -> candlewick::error::Result<Found> {
    resolve(model, options, &mut |_| {})
}

/// Where a file is kept, and where it grows.
fn blob(cache: &tempfile::TempDir, path: &str, bytes: &[u8]) -> (PathBuf, PathBuf) {
    let blobs = cache.path().join("models--org--name/blobs");
    (blobs.join(etag(path, bytes)), blobs.join(format!("{}.incomplete", etag(path, bytes))))
}

#[test]
fn a_model_is_downloaded_once_and_then_found_offline() {
    let hub = FakeHub::start(&MODEL);
    let cache = cache();
    let mut options = hub.options(&cache);
    let mut last = DownloadProgress::default();
    let Found { path, why } = resolve("org/name", &options, &mut |progress| last = progress).expect("is downloaded");
    assert_eq!(last, DownloadProgress { bytes: 2 + 7 + 4096, total_bytes: 2 + 7 + 4096 });
    assert!(why.contains("safetensors with their config.json come first; also there: tiny.gguf"), "{why}");
    let Ok(ModelFiles::Directory(files)) = model_files(&path) else { panic!("is a model") };
    assert_eq!(fs::read(files.safetensors.expect("weights")).expect("is readable"), [7; 4096]);
    assert!(files.path.join("tokenizer.json").is_file() && files.chat_template.is_none());
    assert_eq!(hub.downloads().len(), 3, "neither other formats nor other files are taken");

    assert_eq!(find("org/name", &options).expect("is there").path, path);
    assert_eq!(hub.downloads().len(), 3, "nothing is taken twice");

    drop(hub);
    assert_eq!(find("org/name", &options).expect("the cache serves where the hub does not").path, path);
    options.offline = true;
    assert_eq!(find("org/name", &options).expect("is in the cache").path, path);
    let error = find("org/nane", &options).expect_err("is not in the cache");
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.message.contains("run once without offline mode"), "{error}");
    assert!(error.message.contains("but org/name was"), "{error}");
}

#[test]
fn who_needs_no_weights_leaves_those_of_others_where_they_are_found() {
    let hub = FakeHub::start(&MODEL);
    let cache = cache();
    let whole = hub.options(&cache);
    let beside = HubOptions { without_weights: true, ..whole.clone() };
    let offline = |options: &HubOptions| HubOptions { offline: true, ..options.clone() };
    let old = find("org/name", &whole).expect("is downloaded").path;
    hub.faults().is_merged = true;
    let new = find("org/name", &beside).expect("is downloaded").path;
    assert!(new.ends_with(PULL_REQUEST) && old.ends_with(COMMIT) && !new.join("model.safetensors").exists());
    for options in [offline(&whole), offline(&beside)] {
        assert_eq!(find("org/name", &options).expect("is in the cache").path, old);
    }
    assert_eq!(find("org/name", &whole).expect("is downloaded").path, new);
    assert!(new.join("model.safetensors").is_file());
    assert_eq!(find("org/name", &offline(&whole)).expect("is in the cache").path, new);
    hub.faults().is_merged = false;
    find("org/name", &beside).expect("is there");
    drop(hub);
    assert_eq!(find("org/name", &whole).expect("the cache serves where the hub does not").path, new);
}

#[test]
fn where_only_what_stands_beside_the_weights_was_downloaded_they_are_missed_and_then_fetched() {
    let hub = FakeHub::start(&MODEL);
    let cache = cache();
    let whole = hub.options(&cache);
    let beside = HubOptions { without_weights: true, ..whole.clone() };
    let offline = |options: &HubOptions| HubOptions { offline: true, ..options.clone() };
    let path = find("org/name", &beside).expect("is downloaded").path;
    assert_eq!(find("org/name", &offline(&beside)).expect("is in the cache").path, path);
    let error = find("org/name", &offline(&whole)).expect_err("has no weights");
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.message.contains("revision main has no weights; run once without offline mode"), "{error}");
    let dead = FakeHub::start(&MODEL).options(&cache);
    let error = find("org/name", &dead).expect_err("neither the hub nor the cache has them");
    assert_eq!(error.code, Code::Unavailable, "{error}");
    assert_eq!(find("org/name", &whole).expect("is downloaded").path, path);
    assert_eq!(hub.downloads().len(), 3, "nothing is taken twice");
    assert_eq!(find("org/name", &offline(&whole)).expect("is in the cache").path, path);
}

#[test]
fn the_cache_is_laid_out_as_other_tools_expect_it() {
    let hub = FakeHub::start(&[("config.json", b"{}"), ("sub/tiny.gguf", b"GGUF")]);
    let cache = cache();
    let found = find("org/name:sub/tiny.gguf@refs/pr/1", &hub.options(&cache)).expect("is downloaded");
    let root = cache.path().join("models--org--name");
    assert_eq!(found.path, root.join("snapshots").join(PULL_REQUEST).join("sub/tiny.gguf"));
    assert_eq!(fs::read_to_string(root.join("refs/refs/pr/1")).expect("a ref"), PULL_REQUEST);
    let kept = root.join("blobs").join(etag("sub/tiny.gguf", b"GGUF"));
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(&found.path).expect("a link"),
        Path::new("../../../blobs").join(kept.file_name().expect("a name"))
    );
    assert_eq!(fs::read(kept).expect("a blob"), b"GGUF");
}

#[test]
fn a_quantization_a_file_and_a_revision_can_be_asked_for() {
    let hub = FakeHub::start(&[
        ("m-Q4_K_M.gguf", &[4; 40]),
        ("m-Q8_0.gguf", &[8; 80]),
        ("m-BF16.gguf", &[16; 160]),
        ("mmproj-m-F16.gguf", &[1; 10]),
    ]);
    let cache = cache();
    let options = hub.options(&cache);
    for (model, file, commit) in [
        ("org/name", "m-Q8_0.gguf", COMMIT),
        ("org/name:q4_k_m", "m-Q4_K_M.gguf", COMMIT),
        ("org/name:m-BF16.gguf@main", "m-BF16.gguf", COMMIT),
        ("org/name:Q4_K_M@refs/pr/1", "m-Q4_K_M.gguf", PULL_REQUEST),
    ] {
        let found = find(model, &options).expect("is downloaded");
        assert!(found.path.ends_with(Path::new(commit).join(file)), "{model}: {}", found.path.display());
        assert_eq!(model_files(&found.path).expect("a model"), ModelFiles::Gguf(found.path.clone()), "{model}");
    }
    let taken: Vec<_> = hub.downloads().into_iter().map(|(file, _)| file).collect();
    assert_eq!(taken, ["m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-BF16.gguf"], "what two commits share is taken once");
    let small = HubOptions { memory_bytes: Some(60), ..hub.options(&cache) };
    let why = find("org/name", &small).expect("is there").why;
    assert!(why.contains("m-Q4_K_M.gguf, 40 bytes: the largest that is quantized and fits into 60 bytes"), "{why}");
    for (model, says) in [
        ("org/name:Q4_K_S", "did you mean Q4_K_M? It has BF16, Q4_K_M, Q8_0"),
        ("org/name:none.gguf", "has no file none.gguf"),
        ("org/name@v9", "check the name and the revision"),
    ] {
        let error = find(model, &options).expect_err("is not there");
        assert_eq!(error.code, Code::NotFound, "{error}");
        assert!(error.message.contains(says), "{error}");
    }
}

#[test]
fn all_parts_of_a_split_file_are_taken() {
    let parts = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
    let hub = FakeHub::start(&[(parts[0], b"one"), (parts[1], b"two"), ("x-00001-of-00002.gguf", b"lone")]);
    let cache = cache();
    let mut options = hub.options(&cache);
    let found = find("org/name:m-00002-of-00002.gguf", &options).expect("is downloaded");
    assert!(found.path.ends_with(parts[0]), "{}", found.path.display());
    assert_eq!(fs::read(found.path.with_file_name(parts[1])).expect("is there too"), b"two");

    options.offline = true;
    assert_eq!(find("org/name", &options).expect("is in the cache").path, found.path);
    fs::remove_file(found.path.with_file_name(parts[1])).expect("was there");
    let error = find("org/name:m-00001-of-00002.gguf", &options).expect_err("is no longer whole");
    assert!(error.message.contains("1 of its 2 parts are there; run once without offline mode"), "{error}");
    options.offline = false;
    let error = find("org/name:x-00001-of-00002.gguf", &options).expect_err("was never whole");
    assert!(error.message.contains("1 of its 2 parts are there"), "{error}");
}

#[test]
fn offline_what_is_here_is_chosen_from() {
    let hub = FakeHub::start(&[("m-Q4_K_M.gguf", &[4; 40]), ("m-Q8_0.gguf", &[8; 80])]);
    let cache = cache();
    let mut options = hub.options(&cache);
    let found = find("org/name:Q4_K_M", &options).expect("is downloaded");
    options.offline = true;
    let asked = hub.asked().len();
    for model in ["org/name", "org/name:q4_k_m", "org/name@main", &format!("org/name@{COMMIT}")] {
        assert_eq!(find(model, &options).expect("is in the cache").path, found.path, "{model}");
    }
    for model in ["org/name:Q8_0", "org/name@refs/pr/1", "org/other"] {
        let error = find(model, &options).expect_err("is not in the cache");
        assert_eq!(error.code, Code::FailedPrecondition, "{error}");
        assert!(error.message.contains("run once without offline mode"), "{error}");
    }
    assert_eq!(hub.asked().len(), asked, "nobody is asked");
}

#[test]
fn a_cut_download_goes_on_where_it_broke_off() {
    let bytes = large();
    let hub = FakeHub::start(&[("m.gguf", &bytes)]);
    let cache = cache();
    hub.faults().cuts = [20_000, 30_000].into();
    let mut last = DownloadProgress::default();
    let found = resolve("org/name", &hub.options(&cache), &mut |progress| last = progress).expect("is downloaded");
    assert!(fs::read(found.path).expect("is readable") == bytes);
    let from = |range: Option<&str>| ("m.gguf".to_owned(), range.map(str::to_owned));
    assert_eq!(hub.downloads(), [from(None), from(Some("bytes=20000-")), from(Some("bytes=50000-"))]);
    assert_eq!(last, DownloadProgress { bytes: 300_000, total_bytes: 300_000 });
}

#[test]
fn a_download_that_keeps_breaking_off_is_given_up_and_the_next_one_goes_on() {
    let bytes = large();
    let hub = FakeHub::start(&[("m.gguf", &bytes)]);
    let cache = cache();
    let options = hub.options(&cache);
    hub.faults().cuts = [20_000, 0, 0, 0, 0].into();
    let error = find("org/name", &options).expect_err("stays cut");
    assert_eq!(error.code, Code::Unavailable);
    assert!(error.message.contains("m.gguf: broke off after 20000 of 300000 bytes"), "{error}");
    assert!(error.message.contains("run it again, and it goes on from there"), "{error}");
    assert_eq!(hub.downloads().len(), 5);
    let (whole, incomplete) = blob(&cache, "m.gguf", &bytes);
    assert_eq!(fs::metadata(&incomplete).expect("what came").len(), 20_000);
    assert!(!whole.exists());
    let offline = HubOptions { offline: true, ..options.clone() };
    assert!(find("org/name", &offline).is_err(), "what is not whole is not here");

    let mut first = None;
    let found = resolve("org/name", &options, &mut |progress| first = first.or(Some(progress)));
    assert!(fs::read(found.expect("is downloaded").path).expect("is readable") == bytes);
    assert_eq!(first, Some(DownloadProgress { bytes: 20_000, total_bytes: 300_000 }), "the bar begins where it was");
    assert_eq!(hub.downloads()[5].1.as_deref(), Some("bytes=20000-"));
    assert!(!incomplete.exists());
}

#[test]
fn a_server_without_ranges_is_asked_for_the_whole_again() {
    let bytes = large();
    let hub = FakeHub::start(&[("m.gguf", &bytes)]);
    let cache = cache();
    *hub.faults() = server::Faults { cuts: [20_000].into(), ignores_ranges: true, ..Default::default() };
    let mut last = DownloadProgress::default();
    let found = resolve("org/name", &hub.options(&cache), &mut |progress| last = progress).expect("is downloaded");
    assert!(fs::read(found.path).expect("is readable") == bytes);
    assert_eq!(last, DownloadProgress { bytes: 300_000, total_bytes: 300_000 });
    assert_eq!(hub.downloads().len(), 2);
}

#[test]
fn a_wrong_sum_is_refused_and_nothing_of_it_is_kept() {
    let bytes = large();
    let mut changed = bytes.clone();
    changed[1000..1100].fill(0);
    for (path, bytes, changed) in [("m.gguf", &bytes[..], &changed[..]), ("config.json", &b"{}"[..], &b"[]"[..])] {
        let hub = FakeHub::start(&[(path, bytes)]);
        let cache = cache();
        hub.faults().sent.insert(path.into(), changed.to_vec());
        let error = find("org/name", &hub.options(&cache)).expect_err("was changed");
        assert_eq!(error.code, Code::DataLoss, "{error}");
        let announced = etag(path, bytes);
        assert!(
            error.message.contains(path) && error.message.contains(&format!("the hub says {announced}")),
            "{error}"
        );
        assert_eq!(announced.len() == 64, error.message.contains(&etag("m.gguf", changed)), "both sums: {error}");
        let (whole, incomplete) = blob(&cache, path, bytes);
        assert!(!whole.exists() && !incomplete.exists());
        assert!(!cache.path().join("models--org--name/snapshots").join(COMMIT).join(path).exists());

        hub.faults().sent.clear();
        let found = find("org/name", &hub.options(&cache)).expect("is downloaded anew");
        let file = if path == "m.gguf" { found.path } else { found.path.join(path) };
        assert!(fs::read(file).expect("is readable") == bytes);
        assert_eq!(hub.downloads().last().expect("a download").1, None, "from the start");
    }
}

#[test]
fn a_wrong_size_is_refused() {
    let bytes = large();
    let longer = [bytes.as_slice(), b"!"].concat();
    for (sent, says) in
        [(&bytes[..30_000], "ends after 30000 bytes, but the hub's list says 300000"), (&longer[..], "more comes")]
    {
        let hub = FakeHub::start(&[("m.gguf", &bytes)]);
        let cache = cache();
        hub.faults().sent.insert("m.gguf".into(), sent.to_vec());
        let error = find("org/name", &hub.options(&cache)).expect_err("has the wrong size");
        assert_eq!(error.code, Code::DataLoss, "{error}");
        assert!(error.message.contains(says), "{error}");
        assert!(!blob(&cache, "m.gguf", &bytes).0.exists());
        hub.faults().sent.clear();
        let found = find("org/name", &hub.options(&cache)).expect("is downloaded");
        assert!(fs::read(found.path).expect("is readable") == bytes);
    }
}

#[test]
fn what_others_left_of_a_download_is_checked_like_the_rest() {
    let bytes = large();
    let hub = FakeHub::start(&[("m.gguf", &bytes)]);
    let cache = cache();
    let (whole, incomplete) = blob(&cache, "m.gguf", &bytes);
    fs::create_dir_all(incomplete.parent().expect("a folder")).expect("a folder");
    for (left, begins) in [(1000, "bytes=1000-"), (300_000, ""), (300_001, "")] {
        fs::write(&incomplete, vec![0; left]).expect("is written");
        let before = hub.downloads().len();
        let found = find("org/name", &hub.options(&cache));
        let began: Vec<_> =
            hub.downloads()[before..].iter().map(|(_, range)| range.clone().unwrap_or_default()).collect();
        if left > bytes.len() {
            assert!(fs::read(found.expect("begins anew").path).expect("is readable") == bytes);
            assert_eq!(began, [begins]);
        } else {
            assert_eq!(found.expect_err("is not what it should be").code, Code::DataLoss);
            assert!(!incomplete.exists() && !whole.exists());
            assert_eq!(began, if begins.is_empty() { vec![] } else { vec![begins.to_owned()] });
        }
    }
}

#[test]
fn what_is_here_is_checked_when_that_is_asked_for_and_fetched_again() {
    let bytes = large();
    let hub = FakeHub::start(&[("m.gguf", &bytes)]);
    let cache = cache();
    let options = hub.options(&cache);
    let found = find("org/name", &options).expect("is downloaded");
    let mut rotten = bytes.clone();
    rotten[0] ^= 1;
    fs::write(blob(&cache, "m.gguf", &bytes).0, &rotten).expect("is written");
    assert_eq!(find("org/name", &options).expect("nobody looks"), found);
    assert_eq!(hub.downloads().len(), 1);
    let verify = HubOptions { verify: true, ..options };
    let offline = HubOptions { offline: true, ..verify.clone() };
    assert_eq!(find("org/name", &offline).expect_err("nothing better is here").code, Code::DataLoss);
    assert_eq!(find("org/name", &verify).expect("is downloaded again"), found);
    assert!(fs::read(&found.path).expect("is readable") == bytes);
    assert_eq!(hub.downloads().len(), 2);
    find("org/name", &offline).expect("is good again");

    // A short file, as older versions could leave it, is seen without reading it.
    fs::write(blob(&cache, "m.gguf", &bytes).0, &bytes[..30_000]).expect("is written");
    find("org/name", &hub.options(&cache)).expect("is downloaded again");
    assert!(fs::read(&found.path).expect("is readable") == bytes);
}

#[test]
fn another_host_is_not_shown_the_token_and_a_download_goes_on_there() {
    let bytes = large();
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &bytes)];
    let (hub, store) = (FakeHub::start(&files), FakeHub::start(&files));
    hub.faults().store = Some(store.address);
    store.faults().cuts = [20_000].into();
    let cache = cache();
    let found = find("org/name", &hub.options(&cache)).expect("is downloaded");
    assert!(fs::read(found.path.join("model.safetensors")).expect("is readable") == bytes);
    let bearer = format!("Bearer {TOKEN}");
    assert!(hub.asked().iter().all(|asked| asked.authorization.as_ref() == Some(&bearer)), "{:?}", hub.asked());
    let stored = store.asked();
    assert_eq!(stored.len(), 2, "{stored:?}");
    assert!(stored.iter().all(|asked| asked.authorization.is_none()), "{stored:?}");
    assert_eq!(stored[1].range.as_deref(), Some("bytes=20000-"));
}

#[test]
fn a_repository_that_moved_on_the_same_host_is_followed_with_the_token() {
    let hub = FakeHub::start(&[("m.gguf", b"GGUF")]);
    hub.faults().store = Some(hub.address);
    let cache = cache();
    assert_eq!(
        fs::read(find("org/name", &hub.options(&cache)).expect("is downloaded").path).expect("is readable"),
        b"GGUF"
    );
    let asked = hub.asked();
    assert!(asked.iter().all(|asked| asked.authorization.is_some()), "{asked:?}");
    assert!(asked.iter().any(|asked| asked.method == "HEAD" && asked.path == "/store/m.gguf"), "{asked:?}");
}

#[test]
fn what_may_pass_is_tried_again_and_what_will_not_is_not() {
    let hub = FakeHub::start(&[("m.gguf", b"GGUF")]);
    for (refusals, code, tries) in [
        (vec!["403 Forbidden"], Some(Code::PermissionDenied), 1),
        (vec!["404 Not Found"], Some(Code::NotFound), 1),
        (vec!["429 Too Many Requests"; 5], Some(Code::ResourceExhausted), 5),
        (vec!["503 Service Unavailable"; 5], Some(Code::Unavailable), 5),
        (vec!["503 Service Unavailable"; 4], None, 5),
    ] {
        let cache = cache();
        let before = hub.downloads().len();
        hub.faults().refusals = refusals.clone().into();
        assert_eq!(find("org/name", &hub.options(&cache)).err().map(|error| error.code), code, "{refusals:?}");
        assert_eq!(hub.downloads().len() - before, tries, "{refusals:?}");
    }
}

#[test]
fn two_downloads_of_one_file_take_it_once() {
    let bytes = large();
    let hub = FakeHub::start(&[("m.gguf", &bytes)]);
    let cache = cache();
    hub.faults().heads_before_files = 2;
    let options = &hub.options(&cache);
    let found: Vec<_> = std::thread::scope(|scope| {
        let pulls = [(); 2].map(|()| scope.spawn(|| find("org/name", options)));
        pulls.into_iter().map(|pull| pull.join().expect("no panic").expect("is downloaded")).collect()
    });
    assert_eq!(found[0], found[1]);
    assert!(fs::read(&found[0].path).expect("is readable") == bytes);
    assert_eq!(hub.downloads().len(), 1);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_said_with_what_to_do() {
    let bytes = large();
    let hub = FakeHub::start(&[("m.gguf", &bytes)]);
    let cache = cache();
    let (_, incomplete) = blob(&cache, "m.gguf", &bytes);
    fs::create_dir_all(incomplete.parent().expect("a folder")).expect("a folder");
    // The kernel's own full disk.
    std::os::unix::fs::symlink("/dev/full", &incomplete).expect("a link");
    let error = find("org/name", &hub.options(&cache)).expect_err("cannot be written");
    assert_eq!(error.code, Code::FailedPrecondition);
    assert!(error.message.contains("No space left on device"), "{error}");
    assert!(error.message.contains("make room") && error.message.contains("goes on from there"), "{error}");
    assert_eq!(hub.downloads().len(), 1, "trying again makes no room");
    fs::remove_file(&incomplete).expect("was there");
    assert!(
        fs::read(find("org/name", &hub.options(&cache)).expect("there is room").path).expect("is readable") == bytes
    );
}

#[test]
fn a_hub_that_says_no_is_quoted_with_advice() {
    let hub = FakeHub::start(&[("README.md", b"read me")]);
    let cache = cache();
    for (model, code, advice) in [
        ("org/closed", Code::Unauthenticated, "HF_TOKEN"),
        ("org/none", Code::NotFound, "check the name"),
        ("org/name", Code::FailedPrecondition, "neither config.json"),
    ] {
        let error = find(model, &hub.options(&cache)).expect_err("says no");
        assert_eq!(error.code, code, "{error}");
        assert!(error.message.contains(advice), "{error}");
    }
}

#[test]
fn a_model_can_be_resolved_inside_a_runtime() {
    let hub = FakeHub::start(&MODEL);
    let cache = cache();
    let inside = Runtime::new().expect("a runtime");
    inside.block_on(async { find("org/name", &hub.options(&cache)).map(drop) }).expect("does not panic");
}
