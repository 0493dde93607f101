//! The rules of the house, held by a test: lengths, layers, reachability, configuration keys, documents.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 500;
const FUNCTION_LINES_MAX: usize = 70;

/// Module (folder or file under `src/`) and what it must never import.
const LAYERS: &[(&str, &[&str])] = &[
    (
        "mail",
        &[
            "smtp",
            "user",
            "check",
            "policy",
            "spool",
            "queue",
            "delivery",
            "quarantine",
            "maillog",
            "web",
            "cli",
            "node",
            "submission",
            "reception",
            "connection",
            "listener",
            "config",
            "metrics",
            "dns",
            "tls",
            "stamp",
            "outgate_cluster",
        ],
    ),
    (
        "smtp",
        &[
            "user",
            "check",
            "policy",
            "spool",
            "queue",
            "delivery",
            "quarantine",
            "maillog",
            "web",
            "cli",
            "node",
            "submission",
            "reception",
            "connection",
            "listener",
            "outgate_cluster",
            "tokio::net",
        ],
    ),
    (
        "check",
        &[
            "outgate_cluster",
            "smtp",
            "user",
            "spool",
            "queue",
            "delivery",
            "web",
            "cli",
            "node",
            "connection",
            "listener",
        ],
    ),
    (
        "policy",
        &["tokio", "ractor", "smtp", "spool", "queue", "delivery", "web", "cli", "node", "connection", "listener"],
    ),
    ("spool", &["smtp", "user", "web", "cli", "outgate_cluster", "node", "check", "policy"]),
    ("maillog", &["smtp", "user", "web", "cli", "outgate_cluster", "node", "check", "policy", "queue", "delivery"]),
    ("quarantine", &["smtp", "user", "web", "cli", "outgate_cluster", "node", "check", "policy", "queue", "delivery"]),
    ("queue", &["user", "web", "check", "cli", "node", "connection", "listener", "smtp::session"]),
    ("delivery", &["user", "web", "check", "cli", "node", "connection", "listener", "smtp::session"]),
    ("listener", &["outgate_cluster", "check", "spool", "web", "queue", "delivery"]),
    ("connection", &["outgate_cluster", "check", "spool", "web", "queue", "delivery"]),
    ("web", &["smtp", "connection", "openraft", "sled"]),
    ("cli", &["smtp", "connection", "openraft", "sled"]),
];

/// The same for the cluster crate.
const CLUSTER_LAYERS: &[(&str, &[&str])] = &[
    ("", &["outgate::", "mail_auth", "ractor"]),
    ("state", &["openraft", "sled", "tokio", "HashMap", "HashSet", "SystemTime", "Instant", "rand::"]),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files_under(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(files_under(&path, ending));
        } else if path.extension().is_some_and(|e| e == ending) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<PathBuf> {
    ["src", "cluster/src", "chaos/src"].iter().flat_map(|folder| files_under(&root().join(folder), "rs")).collect()
}

/// A file's code without its unit tests, which stand last.
fn code_of(path: &Path) -> String {
    let is_test = |part: &str| part == "tests" || part.ends_with("tests.rs");
    if path.strip_prefix(root()).unwrap().iter().any(|part| is_test(part.to_str().unwrap())) {
        return String::new();
    }
    let text = fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned()
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

fn assert_none(what: &str, faults: &[String]) {
    assert!(faults.is_empty(), "{what}:\n{}", faults.join("\n"));
}

#[test]
fn files_stay_short() {
    let faults: Vec<_> = sources()
        .iter()
        .map(|path| (shown(path), code_of(path).lines().count()))
        .filter(|(_, lines)| *lines > FILE_LINES_MAX)
        .map(|(path, lines)| format!("{path}: {lines} lines"))
        .collect();
    assert_none("files over the limit", &faults);
}

#[test]
fn functions_stay_short() {
    let faults: Vec<_> = sources().iter().flat_map(|path| long_functions(path)).collect();
    assert_none("functions over the limit", &faults);
}

/// rustfmt puts a function's closing brace at the indentation of its `fn`.
fn long_functions(path: &Path) -> Vec<String> {
    let code = code_of(path);
    let lines: Vec<&str> = code.lines().collect();
    let mut faults = Vec::new();
    for (start, line) in lines.iter().enumerate().filter(|(_, line)| is_function(line)) {
        let close = format!("{}}}", &line[..line.len() - line.trim_start().len()]);
        let length = lines[start..].iter().position(|l| *l == close).map_or(0, |end| end + 1);
        if length > FUNCTION_LINES_MAX {
            faults.push(format!("{}:{}: {length} lines", shown(path), start + 1));
        }
    }
    faults
}

fn is_function(line: &str) -> bool {
    let words = line
        .trim_start()
        .trim_start_matches("pub(crate) ")
        .trim_start_matches("pub(super) ")
        .trim_start_matches("pub ");
    let words = words.trim_start_matches("const ").trim_start_matches("async ");
    words.starts_with("fn ") && !line.trim_end().ends_with(';') && !line.trim_end().ends_with('}')
}

#[test]
fn layers_hold() {
    let mut faults = layer_faults(&root().join("src"), LAYERS);
    faults.extend(layer_faults(&root().join("cluster/src"), CLUSTER_LAYERS));
    assert_none("imports across a border", &faults);
}

fn layer_faults(base: &Path, layers: &[(&str, &[&str])]) -> Vec<String> {
    let mut faults = Vec::new();
    for (module, forbidden) in layers {
        for path in module_files(base, module) {
            let code = code_of(&path);
            for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
                faults.extend(
                    forbidden
                        .iter()
                        .filter(|name| imports(line, name))
                        .map(|name| format!("{} imports {name}: {}", shown(&path), line.trim())),
                );
            }
        }
    }
    faults
}

fn module_files(base: &Path, module: &str) -> Vec<PathBuf> {
    let mut files = files_under(&base.join(module), "rs");
    let single = base.join(format!("{module}.rs"));
    if single.exists() {
        files.push(single);
    }
    files
}

/// Own modules are named behind `crate::`, crates and types by themselves.
fn imports(line: &str, name: &str) -> bool {
    let own = root().join("src").join(name.split("::").next().unwrap());
    let is_own = own.is_dir() || own.with_extension("rs").exists();
    let is_crate = name.starts_with(|c: char| c.is_ascii_lowercase());
    let needle = match (is_own, is_crate && !name.ends_with("::")) {
        (true, _) => format!("crate::{name}"),
        (false, true) => format!("{name}::"),
        (false, false) => name.to_owned(),
    };
    line.match_indices(&needle).any(|(at, _)| {
        let after = line[at + needle.len()..].chars().next();
        let before = line[..at].chars().next_back();
        (needle.ends_with("::") || !after.is_some_and(|c| c.is_alphanumeric() || c == '_'))
            && !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

#[test]
fn every_file_is_reachable() {
    let mut faults = Vec::new();
    for (folder, start) in
        [("src", "lib.rs"), ("cluster/src", "lib.rs"), ("chaos/src", "main.rs"), ("tests/it", "main.rs")]
    {
        let base = root().join(folder);
        let reached = reach(&base.join(start), &base);
        faults.extend(
            files_under(&base, "rs")
                .iter()
                .filter(|p| !reached.contains(*p) && **p != root().join("src/main.rs"))
                .map(|p| shown(p)),
        );
    }
    assert_none("files that no `mod` reaches", &faults);
}

fn reach(file: &Path, folder: &Path) -> BTreeSet<PathBuf> {
    let mut reached = BTreeSet::from([file.to_owned()]);
    let text = fs::read_to_string(file).unwrap();
    for line in text.lines() {
        let words = line
            .trim_start()
            .trim_start_matches("pub(crate) ")
            .trim_start_matches("pub(super) ")
            .trim_start_matches("pub ");
        let Some(name) = words.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) else { continue };
        let unit_tests =
            folder.parent().unwrap().join(format!("{}_tests.rs", folder.file_name().unwrap().to_str().unwrap()));
        if name == "tests" && text.contains("#[path = ") && unit_tests.exists() {
            reached.insert(unit_tests);
        }
        for (path, inside) in [
            (folder.join(format!("{name}.rs")), folder.join(name)),
            (folder.join(name).join("mod.rs"), folder.join(name)),
        ] {
            if path.exists() {
                reached.extend(reach(&path, &inside));
            }
        }
    }
    reached
}

#[test]
fn nothing_is_left_over() {
    let marks = ["TODO", "FIXME", "XXX", "todo!(", "unimplemented!(", "dbg!(", "#[ignore"];
    let mut faults = Vec::new();
    for path in sources()
        .iter()
        .chain(&files_under(&root().join("tests"), "rs"))
        .chain(&files_under(&root().join("cluster/tests"), "rs"))
    {
        if path.ends_with("tidy.rs") {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        faults.extend(text.lines().enumerate().flat_map(|(at, line)| {
            marks
                .iter()
                .filter(|mark| line.contains(**mark))
                .map(move |mark| format!("{}:{}: {mark}", shown(path), at + 1))
        }));
    }
    assert_none("left over", &faults);
}

/// Every field of the configuration is read by code outside of its own definition.
#[test]
fn every_configuration_key_is_read() {
    let definition = fs::read_to_string(root().join("src/config/mod.rs")).unwrap();
    let keys: Vec<&str> = definition
        .split("impl Default")
        .next()
        .unwrap()
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(": "))
        .map(|(key, _)| key)
        .collect();
    let code: String = sources()
        .iter()
        .filter(|path| !path.starts_with(root().join("src/config")))
        .map(|path| code_of(path))
        .collect();
    let faults: Vec<_> =
        keys.iter().filter(|key| !code.contains(&format!(".{key}"))).map(|key| (*key).to_owned()).collect();
    assert!(keys.len() > 30, "the definition was not understood: {keys:?}");
    assert_none("configuration keys that nothing reads", &faults);
}

/// The map of the code names what exists, and what exists is on the map.
#[test]
fn readme_maps_the_tree() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let mut faults = Vec::new();
    for entry in fs::read_dir(root().join("src")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let module = name.trim_end_matches(".rs");
        if !readme.contains(&format!("`{module}`")) && !matches!(module, "lib" | "main") {
            faults.push(format!("README's map lacks `{module}`"));
        }
    }
    let verbs = readme.split("outgate ").skip(1).filter_map(|rest| rest.split_whitespace().next());
    let cli = fs::read_to_string(root().join("src/cli/mod.rs")).unwrap().to_lowercase();
    for verb in verbs
        .filter(|verb| verb.chars().all(|c| c.is_ascii_lowercase()) && readme.contains(&format!("`outgate {verb}")))
    {
        if !cli.contains(&verb.to_lowercase()) {
            faults.push(format!("README names `outgate {verb}`, the command line does not"));
        }
    }
    assert_none("README is out of step", &faults);
}
