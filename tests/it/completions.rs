//! Shell completions and manual pages, from outside.

use super::cli::glitch;

#[test]
fn every_shell_gets_a_script_that_knows_the_options_of_fuzz() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let ran = glitch(&["completions", shell]);
        assert_eq!(ran.code, 0, "{shell}: {}", ran.stderr);
        for word in ["max-evals", "vocabulary", "completions"] {
            assert!(ran.stdout.contains(word), "{shell} does not know {word}");
        }
    }
    let ran = glitch(&["completions", "nosuchshell"]);
    assert_eq!(ran.code, 2);
    assert!(ran.stderr.contains("possible values: bash"), "{}", ran.stderr);
}

#[test]
fn man_prints_one_page_or_writes_all() {
    let ran = glitch(&["man"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    assert!(ran.stdout.contains("\n.TH glitch 1"), "{}", ran.stdout);
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("man1");
    let ran = glitch(&["man", "--out", out.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let written = std::fs::read_dir(&out).unwrap().count();
    assert_eq!(ran.stdout.lines().count(), written, "{}", ran.stdout);
    let page = std::fs::read_to_string(out.join("glitch-fuzz.1")).unwrap();
    assert!(page.contains(".SH SYNOPSIS"), "{page}");
    // A page is replaced by a newer one, a file of somebody else's is not.
    assert_eq!(glitch(&["man", "--out", out.to_str().unwrap()]).code, 0);
    std::fs::write(out.join("glitch.1"), "notes").unwrap();
    let ran = glitch(&["man", "--out", out.to_str().unwrap()]);
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    assert_eq!(std::fs::read_to_string(out.join("glitch.1")).unwrap(), "notes");
}
