//! Imports run one way: the order of the rooms stands in ARCHITECTURE.md, and no file imports,
//! directly or in a circle, one that imports it.
//!
//! The sources are read as text: comments, literals and `#[cfg(test)]` items are left out, paths
//! are resolved along the files of the module tree and through `pub use` lines.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module: its path from the crate root (`["evaluate", "plan"]`), which is also its file.
type Module = Vec<String>;

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Mark(char),
}

/// The words and punctuation of a source, `::` as one mark; without comments and literals.
fn tokens(source: &str) -> Vec<Token> {
    let (chars, mut tokens, mut at) = (source.chars().collect::<Vec<_>>(), Vec::new(), 0);
    let starts =
        |at: usize, text: &str| text.chars().eq(chars[at..].iter().copied().take(text.len()));
    while at < chars.len() {
        let c = chars[at];
        if starts(at, "//") {
            at += chars[at..].iter().take_while(|c| **c != '\n').count();
        } else if starts(at, "/*") {
            at += 2;
            while at < chars.len() && !starts(at, "*/") {
                at += 1;
            }
            at += 2;
        } else if c == 'r' && (starts(at, "r\"") || starts(at, "r#")) {
            let hashes = chars[at + 1..].iter().take_while(|c| **c == '#').count();
            if chars.get(at + 1 + hashes) == Some(&'"') {
                let end = format!("\"{}", "#".repeat(hashes));
                at += 2 + hashes;
                while at < chars.len() && !starts(at, &end) {
                    at += 1;
                }
                at += end.len();
            } else {
                at += 1;
            }
        } else if c == '"' {
            at += 1;
            while at < chars.len() && chars[at] != '"' {
                at += if chars[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if c == '\'' {
            // A character or a lifetime.
            at += match (chars.get(at + 1), chars.get(at + 2)) {
                (Some('\\'), _) => 3 + chars[at + 3..].iter().take_while(|c| **c != '\'').count(),
                (_, Some('\'')) => 2,
                _ => 0,
            };
            at += 1;
        } else if c.is_alphanumeric() || c == '_' {
            let word: String =
                chars[at..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
            at += word.chars().count();
            tokens.push(Token::Word(word));
        } else {
            let path = starts(at, "::");
            at += if path { 2 } else { 1 };
            if !c.is_whitespace() {
                tokens.push(Token::Mark(if path { '\u{2237}' } else { c }));
            }
        }
    }
    tokens
}

/// The separator `::` as a mark.
const PATH: Token = Token::Mark('\u{2237}');

fn word(text: &str) -> Token {
    Token::Word(text.to_owned())
}

/// Leaves out items under `#[cfg(test)]`: up to the matching brace, or the semicolon before it.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let cfg: Vec<Token> = [Token::Mark('#'), Token::Mark('['), word("cfg"), Token::Mark('(')]
        .into_iter()
        .chain([word("test"), Token::Mark(')'), Token::Mark(']')])
        .collect();
    let (mut kept, mut at) = (Vec::new(), 0);
    while at < tokens.len() {
        if !tokens[at..].starts_with(&cfg) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += cfg.len();
        let mut depth = 0;
        while at < tokens.len() {
            match tokens[at] {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') => depth -= 1,
                _ => {}
            }
            let over = depth == 0 && matches!(tokens[at], Token::Mark('}' | ';'));
            at += 1;
            if over {
                break;
            }
        }
    }
    kept
}

/// The paths of a `use` tree that begins at `at`, and where it ends.
fn tree(tokens: &[Token], mut at: usize, before: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut path = before.to_vec();
    loop {
        match &tokens[at] {
            Token::Word(name) if name == "as" => at += 2,
            Token::Word(name) => {
                path.push(name.clone());
                at += 1;
            }
            Token::Mark('{') => {
                at += 1;
                while tokens[at] != Token::Mark('}') {
                    at = tree(tokens, at, &path, paths);
                    if tokens[at] == Token::Mark(',') {
                        at += 1;
                    }
                }
                return at + 1;
            }
            Token::Mark(',' | '}' | ';') => {
                paths.push(path);
                return at;
            }
            _ => at += 1,
        }
    }
}

#[derive(Default)]
struct Source {
    /// Paths as written, those of `pub use` apart: these only pass on.
    paths: Vec<Vec<String>>,
    passed_on: Vec<Vec<String>>,
}

fn source(text: &str) -> Source {
    let tokens = without_tests(tokens(text));
    let (mut source, mut at) = (Source::default(), 0);
    while at < tokens.len() {
        match &tokens[at] {
            // Not `impl Trait + use<'a>`.
            Token::Word(name) if name == "use" && tokens.get(at + 1) != Some(&Token::Mark('<')) => {
                let public = at > 0 && matches!(&tokens[at - 1], Token::Word(w) if w == "pub");
                let paths = if public { &mut source.passed_on } else { &mut source.paths };
                at = tree(&tokens, at + 1, &[], paths);
            }
            Token::Word(first) => {
                let mut path = vec![first.clone()];
                at += 1;
                while let (Some(mark), Some(Token::Word(name))) =
                    (tokens.get(at), tokens.get(at + 1))
                    && *mark == PATH
                {
                    path.push(name.clone());
                    at += 2;
                }
                if path.len() > 1 {
                    source.paths.push(path);
                }
            }
            Token::Mark(_) => at += 1,
        }
    }
    source
}

/// All modules of the crate but its tests', with their sources.
fn modules() -> BTreeMap<Module, Source> {
    fn walk(folder: &Path, module: &Module, found: &mut BTreeMap<Module, Source>) {
        let mut entries: Vec<PathBuf> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let inner = || module.iter().cloned().chain([name.clone()]).collect::<Module>();
            if path.is_dir() && name != "testing" {
                walk(&path, &inner(), found);
            } else if path.extension().is_some_and(|e| e == "rs")
                && !["tests", "main"].contains(&name.as_str())
            {
                let own =
                    if ["mod", "lib"].contains(&name.as_str()) { module.clone() } else { inner() };
                found.insert(own, source(&std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &Vec::new(), &mut found);
    assert!(found.len() > 100, "only {} modules found", found.len());
    found
}

/// The module that a path written in `from` leads to: `None` for another crate's, or its own.
fn resolve(
    path: &[String],
    from: &Module,
    modules: &BTreeMap<Module, Source>,
    depth: usize,
) -> Option<Module> {
    let (mut module, mut rest) = match path[0].as_str() {
        "crate" => (Vec::new(), &path[1..]),
        "self" => (from.clone(), &path[1..]),
        "super" => (from[..from.len().checked_sub(1)?].to_vec(), &path[1..]),
        first => {
            let child: Module = from.iter().cloned().chain([first.to_owned()]).collect();
            (modules.contains_key(&child).then_some(child)?, &path[1..])
        }
    };
    while rest.first().is_some_and(|name| name == "super") {
        module.pop();
        rest = &rest[1..];
    }
    while let Some(name) = rest.first() {
        let child: Module = module.iter().cloned().chain([name.clone()]).collect();
        if !modules.contains_key(&child) {
            break;
        }
        (module, rest) = (child, &rest[1..]);
    }
    // Through `pub use`: the name belongs to the file that has it.
    if let Some(name) = rest.first()
        && depth < 8
        && let Some(passed) = modules[&module].passed_on.iter().find(|p| p.last() == Some(name))
        && let Some(origin) = resolve(passed, &module, modules, depth + 1)
    {
        return Some(origin);
    }
    Some(module)
}

/// Which modules each one imports.
fn imports(modules: &BTreeMap<Module, Source>) -> BTreeMap<Module, BTreeSet<Module>> {
    let of = |module: &Module, source: &Source| {
        let resolved = source.paths.iter().filter_map(|path| resolve(path, module, modules, 0));
        resolved.filter(|target| target != module).collect::<BTreeSet<_>>()
    };
    modules.iter().map(|(module, source)| (module.clone(), of(module, source))).collect()
}

fn name(module: &Module) -> String {
    module.join("::")
}

/// The rooms in the order that ARCHITECTURE.md shows, lowest first.
fn order() -> Vec<String> {
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md"))
            .unwrap();
    let (_, after) = text.split_once("## Import order").expect("a section `Import order`");
    let block = after.split("```").nth(1).expect("a block with the order");
    // Behind the first line, which names the block's language.
    block.split_whitespace().skip(1).map(str::to_owned).collect()
}

#[test]
fn rooms_import_only_rooms_below_them() {
    let (modules, order) = (modules(), order());
    let rooms: BTreeSet<&String> = modules.keys().filter_map(|module| module.first()).collect();
    assert_eq!(rooms, order.iter().collect(), "ARCHITECTURE.md lists every room of src, once");
    let height = |module: &Module| order.iter().position(|room| Some(room) == module.first());
    let mut faults = Vec::new();
    for (module, targets) in imports(&modules).into_iter().filter(|(module, _)| !module.is_empty())
    {
        for target in targets {
            if target.first() != module.first() && height(&target) >= height(&module) {
                faults.push(format!("{} imports {}", name(&module), name(&target)));
            }
        }
    }
    assert!(faults.is_empty(), "imports of a room from above it:\n{}", faults.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let imports = imports(&modules());
    // Inside `model` a configuration knows its weights and the layers know both.
    let mut left: BTreeMap<&Module, BTreeSet<&Module>> = imports
        .iter()
        .filter(|(module, _)| module.first().is_some_and(|room| room != "model"))
        .map(|(module, targets)| {
            (module, targets.iter().filter(|t| t.first().is_some_and(|r| r != "model")).collect())
        })
        .collect();
    // Take away what imports nothing that is left, as long as there is such a file.
    loop {
        let free: Vec<&Module> = left
            .iter()
            .filter(|(_, targets)| targets.iter().all(|target| !left.contains_key(*target)))
            .map(|(module, _)| *module)
            .collect();
        if free.is_empty() {
            break;
        }
        free.iter().for_each(|module| drop(left.remove(module)));
    }
    // What is left contains the circles, and files above them.
    let mut circles: BTreeSet<String> = BTreeSet::new();
    for start in left.keys() {
        let (mut seen, mut next) = (BTreeSet::new(), vec![*start]);
        while let Some(module) = next.pop() {
            for target in left.get(module).into_iter().flatten() {
                if target == start && module != *start {
                    circles.insert(format!("{} <- {}", name(start), name(module)));
                }
                if seen.insert(*target) {
                    next.push(target);
                }
            }
        }
    }
    let circles: Vec<String> = circles.into_iter().collect();
    assert!(circles.is_empty(), "files that import each other:\n{}", circles.join("\n"));
}

#[test]
fn paths_are_read_as_written() {
    let text = r##"
        //! use crate::cli::Nothing;
        use std::fmt;
        use super::plan::{self, Plan, rows::{Job as Row}};
        pub use inner::Item;
        fn g() -> impl Ord + use<> { 1 }
        fn f() -> crate::error::Result<()> { let _ = "use crate::cli;"; let c = '"'; g::<'a'>() }
        #[cfg(test)]
        mod tests { use crate::testing::fake; }
        use crate::text;
    "##;
    let found = source(text);
    let has = |path: &str| found.paths.iter().any(|p| p.join("::") == path);
    for path in ["std::fmt", "super::plan::self", "super::plan::Plan", "super::plan::rows::Job"]
        .into_iter()
        .chain(["crate::error::Result", "crate::text"])
    {
        assert!(has(path), "{path} in {:?}", found.paths);
    }
    assert!(!found.paths.iter().flatten().any(|word| word == "cli" || word == "testing"));
    assert_eq!(found.passed_on, [["inner", "Item"]]);
}
