//! The syntax: what Go's `text/template` makes of the same text, checked against Go 1.26.

use super::parser::parse;
use super::shape::Shape;
use super::{Dialect, Field, Function, Piece, Source, Template};

static EVERYTHING: Dialect = Dialect {
    name: "test template",
    fields: &[Field::Mesh, Field::Zone, Field::TrustDomain],
    functions: &[Function::Label, Function::Tag, Function::Replace],
    shape: Shape::CommonName,
};

/// The pieces as text: `<.Mesh>`, `<label a>`, `<tag a|old>new>`.
fn pieces(source: &str) -> String {
    let parts = parse(&EVERYTHING, source).unwrap_or_else(|error| panic!("{source:?}: {error}"));
    let mut out = String::new();
    for part in parts {
        match part.piece {
            Piece::Literal(text) => out.push_str(&text),
            Piece::Value(value) => {
                out.push('<');
                match value.source {
                    Source::Field(field) => out.push_str(&format!(".{}", field.name())),
                    Source::Label(key) => out.push_str(&format!("label {key}")),
                    Source::Tag(key) => out.push_str(&format!("tag {key}")),
                }
                for replacement in value.replacements {
                    out.push_str(&format!("|{}>{}", replacement.old, replacement.new));
                }
                out.push('>');
            }
        }
    }
    out
}

#[test]
fn reads_what_go_reads() {
    let cases = [
        // Text.
        ("", ""),
        ("plain", "plain"),
        ("}} - { }", "}} - { }"),
        // Fields, and where white space is needed.
        ("{{.Mesh}}", "<.Mesh>"),
        ("{{ .Mesh }}", "<.Mesh>"),
        ("a{{.Mesh}}b{{.Zone}}c", "a<.Mesh>b<.Zone>c"),
        ("{{\n.Mesh\t\r\n}}", "<.Mesh>"),
        ("{{.Mesh}}}}", "<.Mesh>}}"),
        // Functions.
        (r#"{{label "app"}}"#, "<label app>"),
        ("{{ label `app` }}", "<label app>"),
        (r#"{{ tag "kuma.io/service" }}"#, "<tag kuma.io/service>"),
        (r#"{{ label ("app") }}"#, "<label app>"),
        (r#"{{ (label "app") }}"#, "<label app>"),
        (r#"{{ "app" | label }}"#, "<label app>"),
        (r#"{{ replace "_" "-" .Mesh }}"#, "<.Mesh|_>->"),
        (r#"{{ replace "_" "-" (tag "a") }}"#, "<tag a|_>->"),
        (r#"{{ replace "_" "-" ( .Mesh ) }}"#, "<.Mesh|_>->"),
        // Pipes.
        (r#"{{ tag "a" | replace "_" "-" }}"#, "<tag a|_>->"),
        (r#"{{tag "a"|replace "_" "-"}}"#, "<tag a|_>->"),
        (
            r#"{{ .Mesh | replace "a" "b" | replace "b" "c" }}"#,
            "<.Mesh|a>b|b>c>",
        ),
        (
            r#"{{ replace "b" "c" (.Mesh | replace "a" "b") }}"#,
            "<.Mesh|a>b|b>c>",
        ),
        (r#"{{ .Mesh | replace "" "-" }}"#, "<.Mesh|>->"),
        ("{{ .Mesh | }}", "<.Mesh>"),
        ("{{ (.Mesh |) }}", "<.Mesh>"),
        // Constants are computed when parsing, as Go's `strings.ReplaceAll` would.
        (r#"{{ "text" }}"#, "text"),
        (r#"{{ "" }}"#, ""),
        (r#"{{ replace "a" "b" "banana" }}"#, "bbnbnb"),
        (r#"{{ replace "" "-" "né" }}"#, "-n-é-"),
        (r#"{{ replace "" "-" "" }}"#, "-"),
        (r#"{{ "x_y" | replace "_" "." | label }}"#, "<label x.y>"),
        // Trim markers: `{{- ` and ` -}}`, with ASCII white space only.
        ("a {{- .Mesh -}} b", "a<.Mesh>b"),
        ("a \t\r\n{{- .Mesh }} b", "a<.Mesh> b"),
        ("a {{ .Mesh -}} \t\r\n b", "a <.Mesh>b"),
        ("a {{-\n.Mesh\n-}} b", "a<.Mesh>b"),
        ("a {{- .Mesh   -}} b", "a<.Mesh>b"),
        ("a\u{a0}{{- .Mesh -}}\u{b}b", "a\u{a0}<.Mesh>\u{b}b"),
        ("{{ .Mesh -}} {{- .Zone }}", "<.Mesh><.Zone>"),
        ("{{ .Mesh -}} \n {{ .Zone }}", "<.Mesh><.Zone>"),
        (r#" {{- "a" -}} "#, "a"),
        // Comments.
        ("a{{/* a comment */}}b", "ab"),
        ("a {{- /* a comment */ -}} b", "ab"),
        ("a {{/* a comment */ -}} b", "a b"),
        ("a {{- /* a comment */}} b", "a b"),
        ("{{/* {{ .Unknown }} \n }} */}}", ""),
        ("{{/**/}}", ""),
        // Strings.
        (
            r#"{{ "\a\b\f\n\r\t\v\\\"" }}"#,
            "\u{7}\u{8}\u{c}\n\r\t\u{b}\\\"",
        ),
        (r#"{{ "\x41\101\u00e9\U0001F600" }}"#, "AAé😀"),
        (r#"{{ "\xc3\xa9\303\251" }}"#, "éé"),
        (r#"{{ "}} {{ '`" }}"#, "}} {{ '`"),
        ("{{ `}} \"\\n\n` }}", "}} \"\\n\n"),
        ("{{ `a\r\nb\r` }}", "a\nb"),
        ("{{ \"a\rb\" }}", "a\rb"),
    ];
    for (source, expected) in cases {
        assert_eq!(pieces(source), expected, "{source:?}");
    }
}

#[test]
fn refuses_what_is_not_a_template_and_says_where() {
    let cases = [
        // Delimiters.
        ("ab{{ .Mesh", 2..4, "`{{` is never closed"),
        ("ab{{", 2..4, "`{{` is never closed"),
        ("{{ .Mesh }", 9..10, "`}` is not expected here"),
        ("{{}}", 0..4, "nothing in here"),
        ("a{{  }}", 1..7, "nothing in here"),
        ("{{- -}}", 4..5, "must have white space before it"),
        ("{{-.Mesh}}", 2..3, "must be followed by white space"),
        ("{{.Mesh-}}", 7..8, "must have white space before it"),
        ("{{ (.Mesh)-}}", 10..11, "must have white space before it"),
        ("{{{.Mesh}}}", 2..3, "`{` is not expected here"),
        // Comments.
        ("a{{/* x", 1..5, "this comment is never closed"),
        ("{{/* x */ }}", 7..9, "must end directly before"),
        ("{{/* x */-}}", 7..9, "must end directly before"),
        ("{{ /* x */}}", 3..4, "must start directly after"),
        ("{{-  /* x */}}", 5..6, "must start directly after"),
        // Strings.
        (r#"{{ "a }}"#, 3..4, "this string is never closed"),
        ("{{ \"a\n\" }}", 3..4, "this string is never closed"),
        ("{{ `a }}", 3..4, "this string is never closed"),
        (r#"{{ "\"#, 3..4, "this string is never closed"),
        (
            r#"{{ "a\'" }}"#,
            5..7,
            r"`\'` is not an escape of a Go string",
        ),
        (r#"{{ "\é" }}"#, 4..7, r"is not an escape"),
        (r#"{{ "\x4" }}"#, 4..7, "this escape is not a byte"),
        (r#"{{ "\400" }}"#, 4..8, "this escape is not a byte"),
        (r#"{{ "\18" }}"#, 4..6, "this escape is not a byte"),
        (r#"{{ "\ud800" }}"#, 4..10, "not a Unicode character"),
        (r#"{{ "\U00110000" }}"#, 4..14, "not a Unicode character"),
        (r#"{{ "a\xff" }}"#, 3..10, "do not make valid UTF-8"),
        // Names.
        ("{{ .Namespace }}", 3..13, "unknown variable `.Namespace`"),
        ("{{ .mesh }}", 3..8, "did you mean `.Mesh`?"),
        ("{{ .Mehs }}", 3..8, "did you mean `.Mesh`?"),
        ("{{ .trust_domain }}", 3..16, "did you mean `.TrustDomain`?"),
        (
            "{{ Zone }}",
            3..7,
            "unknown function `Zone`; did you mean `.Zone`?",
        ),
        (
            "{{ .label \"a\" }}",
            3..9,
            "unknown variable `.label`; did you mean `label \"key\"`?",
        ),
        (
            "{{ lable \"a\" }}",
            3..8,
            "unknown function `lable`; did you mean `label \"key\"`?",
        ),
        (
            "{{ .Mesh | upper }}",
            11..16,
            "unknown function `upper`: a test template may use",
        ),
        ("{{ printf \"a\" }}", 3..9, "unknown function `printf`"),
        // Calls.
        ("{{ label }}", 3..8, "`label` takes 1 argument, not 0"),
        (
            r#"{{ label "a" "b" }}"#,
            3..16,
            "`label` takes 1 argument, not 2",
        ),
        (
            r#"{{ "a" | label "b" }}"#,
            9..18,
            "`label` takes 1 argument, not 2",
        ),
        (r#"{{ label "" }}"#, 9..11, "the key of `label` is empty"),
        (
            "{{ label .Mesh }}",
            9..14,
            "the key of `label` must be a string in quotes",
        ),
        (
            "{{ .Mesh | tag }}",
            11..14,
            "the key of `tag` must be a string in quotes",
        ),
        (
            r#"{{ replace "a" "b" }}"#,
            3..18,
            "`replace` takes 3 arguments",
        ),
        (
            r#"{{ .Mesh | replace "a" }}"#,
            11..22,
            "`replace` takes 3 arguments",
        ),
        (
            r#"{{ replace .Mesh "a" "b" }}"#,
            11..16,
            "must be strings in quotes",
        ),
        (
            r#"{{ replace "_" "-" tag "a" }}"#,
            19..22,
            "needs parentheses: `(tag …)`",
        ),
        (
            r#"{{ .Mesh "a" }}"#,
            9..12,
            "only a function takes arguments",
        ),
        (
            r#"{{ .Mesh | .Zone }}"#,
            11..16,
            "only a function can follow `|`",
        ),
        (
            r#"{{ .Mesh | (replace "a" "b") }}"#,
            12..27,
            "`replace` takes 3 arguments",
        ),
        ("{{ | label }}", 3..4, "`|` has nothing before it"),
        ("{{ .Mesh || label }}", 10..11, "`|` has nothing before it"),
        // White space between operands.
        (
            r#"{{ replace "a""b" .Mesh }}"#,
            14..17,
            "white space is missing",
        ),
        (
            r#"{{ replace "a" "b"(.Mesh) }}"#,
            18..19,
            "white space is missing",
        ),
        (r#"{{ label("a") }}"#, 8..9, "white space is missing"),
        (r#"{{ label"a" }}"#, 8..9, "cannot follow a name directly"),
        ("{{ .Mesh\u{a0}}}", 8..10, "cannot follow a name directly"),
        // Parentheses.
        ("{{ (.Mesh }}", 3..4, "`(` is never closed"),
        ("{{ .Mesh) }}", 8..9, "`)` without `(`"),
        ("{{ () }}", 3..5, "nothing in here"),
        // The rest of Go's language.
        (
            "{{ if .Mesh }}a{{ end }}",
            3..5,
            "`if` is not supported here",
        ),
        ("{{ range .Mesh }}", 3..8, "`range` is not supported here"),
        ("{{ end }}", 3..6, "`end` is not supported here"),
        ("{{ define \"a\" }}", 3..9, "`define` is not supported here"),
        ("{{ nil }}", 3..6, "`nil` is not supported here"),
        ("{{ true }}", 3..7, "`true` is not supported here"),
        (
            "{{ $x := .Mesh }}",
            3..4,
            "variables are not supported here",
        ),
        ("{{ . }}", 3..4, "`.` alone"),
        (
            "{{ .Mesh.Zone }}",
            8..13,
            "fields of a value are not supported here",
        ),
        (
            "{{ (.Mesh).Zone }}",
            10..15,
            "fields of a value are not supported here",
        ),
        ("{{ 12 }}", 3..4, "numbers are not supported here"),
        ("{{ .5 }}", 3..4, "numbers are not supported here"),
        ("{{ -5 }}", 3..4, "numbers are not supported here"),
        (
            "{{ 'a' }}",
            3..4,
            "character constants are not supported here",
        ),
        ("{{ .Mesh, }}", 8..9, "variables are not supported here"),
        ("{{ \0 }}", 3..4, "is not expected here"),
    ];
    for (source, offset, message) in cases {
        match parse(&EVERYTHING, source) {
            Ok(_) => panic!("{source:?} was accepted"),
            Err(error) => {
                assert!(error.to_string().contains(message), "{source:?}: {error}");
                assert_eq!(error.offset(), offset, "{source:?}: {error}");
            }
        }
    }
}

#[test]
fn parentheses_nest_so_deep_and_no_deeper() {
    let nested =
        |depth: usize| format!("{{{{ {}.Mesh{} }}}}", "(".repeat(depth), ")".repeat(depth));
    assert_eq!(pieces(&nested(32)), "<.Mesh>");
    assert!(parse(&EVERYTHING, &nested(33)).is_err());
    assert!(parse(&EVERYTHING, &"{{ (".repeat(100_000)).is_err());
}

#[test]
fn constants_do_not_explode() {
    let doubling = r#" | replace "a" "aa""#.repeat(64);
    let error = Template::parse(&EVERYTHING, &format!("{{{{ \"a\"{doubling} }}}}"))
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.message(), "the result of `replace` is too long");
}

#[test]
fn an_error_lists_what_the_template_may_use() {
    let error = parse(&EVERYTHING, "{{ .Foo }}").map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "test template, byte 3: unknown variable `.Foo`: a test template may use `.Mesh`, `.Zone`, \
         `.TrustDomain`, `label \"key\"`, `tag \"key\"` and `replace \"old\" \"new\" value`"
    );
    let error: crate::Error = error.into();
    assert_eq!(error.kind(), crate::ErrorKind::InvalidConfig);
}
