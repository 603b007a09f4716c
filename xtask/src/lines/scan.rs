//! What a Rust file has, by its tokens: lines of code, functions and modules, all outside tests.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, Group, LexError, Span, TokenStream, TokenTree};

/// What a file has outside tests.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// Lines with code.
    pub(super) code: usize,
    /// All lines but those of test items.
    pub(super) lines: usize,
    pub(super) functions: Vec<Function>,
    /// The words that paths begin with.
    pub(super) path_starts: BTreeSet<String>,
    /// The modules that are files of their own.
    pub(super) modules: Vec<Module>,
}

#[derive(Debug)]
pub(super) struct Function {
    pub(super) name: String,
    /// Where it begins.
    pub(super) line: usize,
    /// From there to its closing brace.
    pub(super) lines: usize,
}

/// `mod name;`
#[derive(Debug)]
pub(super) struct Module {
    pub(super) name: String,
    /// The folder of the modules around it that are written in the same file.
    pub(super) inside: PathBuf,
    /// Its attribute `#[path]`.
    pub(super) path: Option<String>,
}

impl Scanned {
    pub(super) fn of(text: &str) -> Result<Self, LexError> {
        let mut walk = Walk::default();
        walk.tokens(text.parse()?, Path::new(""));
        let mut found = walk.found;
        let is_test = |line: &usize| walk.tests.iter().any(|lines| lines.contains(line));
        found.code = walk.code.len();
        found.lines = (1..=text.lines().count())
            .filter(|line| !is_test(line))
            .count();
        Ok(found)
    }
}

#[derive(Default)]
struct Walk {
    code: BTreeSet<usize>,
    tests: Vec<RangeInclusive<usize>>,
    found: Scanned,
}

impl Walk {
    fn tokens(&mut self, stream: TokenStream, inside: &Path) {
        let tokens: Vec<_> = stream.into_iter().collect();
        let mut rest = tokens.as_slice();
        let mut path = None;
        while let [first, after @ ..] = rest {
            if let Some((attribute, after_it)) = attribute(rest) {
                rest = after_it;
                if is_doc_comment(first) {
                    continue;
                }
                if is_test(attribute) {
                    let begin = first.span().start().line;
                    let (end, after_item) = item(rest);
                    self.tests.push(begin..=end.unwrap_or(begin));
                    rest = after_item;
                    continue;
                }
                path = path_of(attribute).or(path);
                self.mark(first.span());
                self.mark_group(attribute, inside);
                continue;
            }
            let start = path_start(&tokens, tokens.len() - rest.len());
            self.found.path_starts.extend(start);
            match rest {
                [TokenTree::Ident(word), TokenTree::Ident(name), after @ ..] if word == "fn" => {
                    self.function(word.span(), name.to_string(), after);
                }
                [TokenTree::Ident(word), TokenTree::Ident(name), next, ..] if word == "mod" => {
                    let name = name.to_string();
                    match next {
                        TokenTree::Group(body) => {
                            self.mark(word.span());
                            self.mark_group(body, &inside.join(name));
                            rest = rest.get(3..).unwrap_or_default();
                            continue;
                        }
                        _ => self.found.modules.push(Module {
                            name,
                            inside: inside.to_owned(),
                            path: path.take(),
                        }),
                    }
                }
                _ => {}
            }
            match first {
                TokenTree::Group(group) => self.mark_group(group, inside),
                other => self.mark(other.span()),
            }
            if is_punct(first, ';') {
                path = None;
            }
            rest = after;
        }
    }

    fn mark(&mut self, span: Span) {
        self.code.extend(span.start().line..=span.end().line);
    }

    fn mark_group(&mut self, group: &Group, inside: &Path) {
        if group.delimiter() != Delimiter::None {
            self.mark(group.span_open());
            self.mark(group.span_close());
        }
        self.tokens(group.stream(), inside);
    }

    fn function(&mut self, begin: Span, name: String, rest: &[TokenTree]) {
        let body = rest
            .iter()
            .take_while(|token| !is_punct(token, ';'))
            .find_map(braces);
        if let Some(body) = body {
            let line = begin.start().line;
            self.found.functions.push(Function {
                name,
                line,
                lines: body.span_close().end().line - line + 1,
            });
        }
    }
}

/// The word here, if a path begins with it: `a` of `a::b` and of `use a`.
fn path_start(tokens: &[TokenTree], at: usize) -> Option<String> {
    let TokenTree::Ident(word) = tokens.get(at)? else {
        return None;
    };
    let colons = |at: usize| {
        let mut next = tokens.iter().skip(at);
        next.next().is_some_and(|token| is_punct(token, ':'))
            && next.next().is_some_and(|token| is_punct(token, ':'))
    };
    let word_at = |at: Option<usize>| match tokens.get(at?)? {
        TokenTree::Ident(word) => Some(word),
        _ => None,
    };
    let is_used = word_at(at.checked_sub(1)).is_some_and(|before| before == "use");
    let within = word_at(at.checked_sub(3)).is_some() && colons(at - 2);
    (is_used || (colons(at + 1) && !within)).then(|| word.to_string())
}

/// The attribute at the beginning, and what follows it.
fn attribute(tokens: &[TokenTree]) -> Option<(&Group, &[TokenTree])> {
    match tokens {
        [hash, TokenTree::Group(group), rest @ ..]
            if is_punct(hash, '#') && group.delimiter() == Delimiter::Bracket =>
        {
            Some((group, rest))
        }
        [hash, bang, TokenTree::Group(group), rest @ ..]
            if is_punct(hash, '#')
                && is_punct(bang, '!')
                && group.delimiter() == Delimiter::Bracket =>
        {
            Some((group, rest))
        }
        _ => None,
    }
}

/// The lexer makes `#[doc = "…"]` of a doc comment, and its `#` then spans the comment.
fn is_doc_comment(hash: &TokenTree) -> bool {
    let (start, end) = (hash.span().start(), hash.span().end());
    start.line != end.line || end.column - start.column > 1
}

fn is_punct(token: &TokenTree, wanted: char) -> bool {
    matches!(token, TokenTree::Punct(punct) if punct.as_char() == wanted)
}

fn braces(token: &TokenTree) -> Option<&Group> {
    match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group),
        _ => None,
    }
}

/// Whether this is a `cfg` that holds in tests only.
fn is_test(attribute: &Group) -> bool {
    let tokens: Vec<_> = attribute.stream().into_iter().collect();
    match tokens.as_slice() {
        [TokenTree::Ident(cfg), TokenTree::Group(predicate)] if cfg == "cfg" => {
            needs_test(&predicate.stream().into_iter().collect::<Vec<_>>())
        }
        _ => false,
    }
}

fn needs_test(predicate: &[TokenTree]) -> bool {
    match predicate {
        [TokenTree::Ident(test)] => test == "test",
        [TokenTree::Ident(of), TokenTree::Group(list)] => {
            let list: Vec<_> = list.stream().into_iter().collect();
            let mut parts = list
                .split(|token| is_punct(token, ','))
                .filter(|part| !part.is_empty());
            (of == "all" && parts.clone().any(needs_test)) || (of == "any" && parts.all(needs_test))
        }
        _ => false,
    }
}

fn path_of(attribute: &Group) -> Option<String> {
    let tokens: Vec<_> = attribute.stream().into_iter().collect();
    match tokens.as_slice() {
        [TokenTree::Ident(name), equals, TokenTree::Literal(path)]
            if name == "path" && is_punct(equals, '=') =>
        {
            Some(path.to_string().trim_matches('"').to_owned())
        }
        _ => None,
    }
}

/// Words that an item begins with, whose generics may have commas. Anything else ends at a comma: a field, an
/// argument, a variant.
const ITEMS: &[&str] = &[
    "async",
    "const",
    "enum",
    "extern",
    "fn",
    "impl",
    "let",
    "macro_rules",
    "mod",
    "static",
    "struct",
    "trait",
    "type",
    "union",
    "unsafe",
    "use",
];

/// The last line of what an attribute stands before, and what follows it.
fn item(tokens: &[TokenTree]) -> (Option<usize>, &[TokenTree]) {
    let mut rest = tokens;
    while let Some((_, after)) = attribute(rest) {
        rest = after;
    }
    let is_item = match rest {
        [TokenTree::Ident(visibility), TokenTree::Group(_), word, ..]
        | [TokenTree::Ident(visibility), word, ..]
            if visibility == "pub" =>
        {
            is_word(word)
        }
        [word, ..] => is_word(word),
        [] => false,
    };
    let mut last = None;
    while let [token, after @ ..] = rest {
        if !is_item && is_punct(token, ',') {
            return (last, after);
        }
        last = Some(token.span().end().line);
        rest = after;
        let ends_here = braces(token).is_some()
            && !matches!(after, [next, ..] if is_punct(next, ';') || is_punct(next, '.'));
        if ends_here || is_punct(token, ';') {
            break;
        }
    }
    (last, rest)
}

fn is_word(token: &TokenTree) -> bool {
    matches!(token, TokenTree::Ident(word) if ITEMS.iter().any(|item| word == item))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str) -> Scanned {
        Scanned::of(text).unwrap()
    }

    #[test]
    fn code_is_what_is_neither_blank_nor_comment() {
        for (text, code) in [
            ("", 0),
            ("// nothing\n\n/* nor\n   here */\n", 0),
            ("//! of the file\n/// of the item\nfn f() {}\n", 1),
            ("/** long\n */\nfn f() {} // and a remark\n", 1),
            ("fn f() {\n\n    // why\n    g();\n}\n", 3),
            ("const A: &str = \"// one\n\n// three\";\n", 3),
            ("const A: &str = r#\"/*\n\"#; /* const B: u8 = 1;\n*/\n", 2),
            (
                "#![doc = \"written\"]\n#[must_use]\nfn f<'a>(_: &'a str) -> char { '\"' }\n",
                3,
            ),
            (
                "macro_rules! m {\n    () => {\n        /// of what it makes\n        fn f() {}\n    };\n}\n",
                5,
            ),
        ] {
            assert_eq!(scan(text).code, code, "{text}");
        }
    }

    #[test]
    fn test_items_are_not_code() {
        for item in [
            "#[cfg(test)]\nmod tests {\n    fn f() {}\n}\n",
            "#[cfg(test)]\n#[path = \"x.rs\"]\npub(crate) mod tests;\n",
            "#[cfg(all(test, feature = \"a\"))]\nuse a::{b, c};\n",
            "#[cfg(any(test))]\nfn f<A, B>(_: A) -> B {\n    loop {}\n}\n",
            "/// A doc comment after it.\n#[cfg(test)]\n/// One more.\nimpl<A, B> C<A, B> {}\n",
            "#[cfg(test)]\nconst A: B = B { c: 1 };\n",
        ] {
            let found = scan(&format!("fn before() {{}}\n{item}fn after() {{}}\n"));
            assert_eq!(found.code, 2, "{item}");
            assert_eq!(found.functions.len(), 2, "{item}");
            assert!(found.modules.is_empty(), "{item}");
        }
        for kept in [
            "#[cfg(any(test, feature = \"a\"))]\nfn f() {}\n",
            "#[cfg(not(test))]\nfn f() {}\n",
            "#[cfg(feature = \"test\")]\nfn f() {}\n",
        ] {
            assert_eq!(scan(kept).code, 2, "{kept}");
        }
        let field = "struct A {\n    #[cfg(test)]\n    b: C<D>,\n    e: F,\n}\n";
        assert_eq!(scan(field).code, 3);
    }

    #[test]
    fn paths_begin_with_a_crate_or_a_module() {
        let text = "use a::b::{c, d};\npub use e as f;\nfn g(h: i::J) -> ::k::L<m::N> {}\n#[o::p]\n#[cfg(test)]\nuse q::r;\n";
        let found = scan(text);
        let found: Vec<_> = found.path_starts.iter().map(String::as_str).collect();
        assert_eq!(found, ["a", "e", "i", "k", "m", "o"]);
    }

    #[test]
    fn functions_are_found_wherever_they_are() {
        let text = "trait A {\n    fn a();\n    fn b() {\n    }\n}\nmod c {\n    impl D {\n        async fn e(f: fn(u8) -> u8) {}\n    }\n}\n";
        let found = scan(text);
        let found: Vec<_> = found
            .functions
            .iter()
            .map(|it| (it.name.as_str(), it.line, it.lines))
            .collect();
        assert_eq!(found, [("b", 3, 2), ("e", 8, 1)]);
    }

    #[test]
    fn modules_know_their_folder_and_path() {
        let text = "mod a;\n#[path = \"other.rs\"]\npub mod b;\nmod c {\n    pub(super) mod d;\n}\nmod e;\n";
        let found = scan(text);
        let found: Vec<_> = found
            .modules
            .iter()
            .map(|it| {
                (
                    it.name.as_str(),
                    it.inside.to_str().unwrap(),
                    it.path.as_deref(),
                )
            })
            .collect();
        assert_eq!(
            found,
            [
                ("a", "", None),
                ("b", "", Some("other.rs")),
                ("d", "c", None),
                ("e", "", None)
            ]
        );
    }
}
