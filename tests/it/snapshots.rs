//! Texts that users see, word for word, as snapshots in `tests/it/snapshots/`. After a change that
//! is meant, bless them (CONTRIBUTING.md says how) and read the diff as a user would.

use super::cli::glitch;

/// The commands that a help text lists, in its order.
fn commands(help: &str) -> Vec<&str> {
    let (_, list) = help.split_once("\nCommands:\n").unwrap_or_default();
    let names = list.lines().take_while(|line| !line.is_empty());
    // A description that is wrapped goes on further to the right.
    names
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect()
}

#[test]
fn help_of_every_command() {
    let mut pending: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = 0;
    while let Some(words) = pending.pop() {
        let ran = glitch(&words.iter().map(String::as_str).chain(["--help"]).collect::<Vec<_>>());
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{words:?}");
        assert!(ran.stdout.lines().all(|line| line.chars().count() <= 100), "{words:?}");
        let name = [vec!["help".to_owned()], words.clone()].concat().join("_");
        insta::assert_snapshot!(name, ran.stdout);
        let inner = commands(&ran.stdout).into_iter();
        pending.extend(inner.map(|name| [words.clone(), vec![name.to_owned()]].concat()));
        seen += 1;
    }
    assert!(seen >= 25, "only {seen} commands were found");
}

#[test]
fn model_show_of_every_built_in() {
    for name in ["dense", "moe", "mamba", "rwkv"] {
        let ran = glitch(&["model", "show", &format!("builtin:{name}")]);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        // The noise floor is measured, and depends on the processor.
        let shown: Vec<String> = ran
            .stdout
            .lines()
            .map(|line| match line.split_once("noise floor") {
                Some((before, after)) => {
                    let (figure, rest) = after.trim_start().split_once(' ').unwrap();
                    assert!((0.0..1e-4).contains(&figure.parse::<f64>().unwrap()), "{line}");
                    format!("{before}noise floor  [figure] {rest}")
                }
                None => line.to_owned(),
            })
            .collect();
        insta::assert_snapshot!(format!("model_show_{name}"), shown.join("\n"));
    }
}

#[test]
fn usage_errors() {
    let mut said = String::new();
    for args in [
        &[][..],
        &["frobnicate"],
        &["replay"],
        &["replay", "/no/such/path"],
        &["replay", "x.json", "--frob"],
        &["minimize"],
        &["minimize", "/no/such/case.json"],
        &["minimize", "x.json", "--max-calls", "many"],
        &["implicate", "/no/such/case.json"],
        &["corpus"],
        &["corpus", "add"],
        &["corpus", "add", "/no/such/case.json"],
        &["corpus", "--dir", "/no/such/dir", "list"],
        &["corpus", "--dir", "/no/such/dir", "verify"],
        &["corpus", "show", "0123456789abcdef"],
        &["model", "logits", "builtin:dense"],
        &["model", "logits", "builtin:dense", "--ids", "1,x"],
        &["model", "logits", "builtin:dense", "--ids", "999999"],
        &["model", "bench", "--batch", "0"],
        &["model", "complete", "builtin:dense"],
        &["fuzz", "--mutate", "tokns"],
        &["fuzz", "--max-time", "soon"],
        &["fuzz", "/no/such/campaign.toml"],
        &["sweep", "experts"],
        &["sweep", "routers", "--model", "builtin:dense"],
        &["sweep", "heads", "--text", "/no/such/text.txt"],
        &["suffix", "--prompt", "no-such-file.txt", "--target", " a"],
        &["suffix", "--prompt", "a {suffix} b {suffix}", "--target", " a"],
        &["report", "/no/such/folder"],
    ] {
        let ran = glitch(args);
        assert_eq!(ran.code, 2, "{args:?}\n{}{}", ran.stdout, ran.stderr);
        assert_eq!(ran.stdout, "", "{args:?}: errors go to stderr");
        said += &format!("$ glitch {}\n{}\n", args.join(" "), ran.stderr.trim_end());
    }
    insta::assert_snapshot!(said);
}
