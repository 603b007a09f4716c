//! From samples to a table and `bench.json`.

use serde_json::json;

use super::plan::{Bench, What};
use crate::process::Result;

/// One comparison.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    bench: &'static str,
    case: &'static str,
    /// Ours, in the unit.
    value: f64,
    unit: &'static str,
    against: String,
    /// Theirs, in the unit; or the limit.
    theirs: f64,
    /// Above 1 we are better.
    ratio: f64,
    wanted: Option<f64>,
}

/// The comparisons of a bench: samples of ours first, then of those contenders that were there.
pub(super) fn rows(bench: &Bench, samples: &[(&str, Vec<f64>)]) -> Vec<Row> {
    let Some(((_, ours), others)) = samples.split_first() else {
        return Vec::new();
    };
    let (unit, nanoseconds) = bench.unit;
    let value = median(ours);
    bench
        .against
        .iter()
        .filter_map(|against| {
            let (name, theirs, ratio) = match &against.what {
                What::Limit(limit) => (
                    format!("limit {} {unit}", limit / nanoseconds),
                    *limit,
                    limit / value,
                ),
                What::Contender(contender) => {
                    let (_, theirs) = others.iter().find(|(name, _)| *name == contender.name)?;
                    // Of each round by itself: what slowed the machine down in one slowed both.
                    let ratios: Vec<f64> = theirs
                        .iter()
                        .zip(ours)
                        .map(|(theirs, ours)| theirs / ours)
                        .collect();
                    (contender.name.to_owned(), median(theirs), median(&ratios))
                }
            };
            Some(Row {
                bench: bench.bench,
                case: bench.case,
                value: value / nanoseconds,
                unit,
                against: name,
                theirs: theirs / nanoseconds,
                ratio,
                wanted: against.wanted,
            })
        })
        .collect()
}

/// The middle one, or the mean of the two in the middle.
pub(super) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let at = |index: usize| sorted.get(index).copied().unwrap_or(f64::NAN);
    if sorted.len().is_multiple_of(2) {
        (at(middle.saturating_sub(1)) + at(middle)) / 2.0
    } else {
        at(middle)
    }
}

/// The comparisons as Markdown, so that it can be pasted where people read it.
pub(super) fn table(rows: &[Row]) -> String {
    let head = ["case", "meshca", "against", "theirs", "ratio", "wanted"].map(str::to_owned);
    let body = rows.iter().map(|row| {
        [
            format!("{}/{}", row.bench, row.case),
            format!("{} {}", rounded(row.value), row.unit),
            row.against.clone(),
            format!("{} {}", rounded(row.theirs), row.unit),
            format!("{:.2}", row.ratio),
            row.wanted
                .map_or_else(String::new, |wanted| format!("≥ {wanted}")),
        ]
    });
    layout(&head, &body.collect::<Vec<_>>())
}

/// Columns of equal width; those with a number to the right.
pub(super) fn layout<const N: usize>(head: &[String; N], body: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for line in body.iter().chain([head]) {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String; N]| {
        let cells: Vec<String> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    let mut text = line(head);
    text.push_str(&format!("|{}|\n", rule.join("|")));
    text.extend(body.iter().map(line));
    text
}

/// Three digits that say something.
pub(super) fn rounded(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// `[{bench, case, value, unit, against, ratio}, …]`.
pub(super) fn json(rows: &[Row]) -> Result<String> {
    let list: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "bench": row.bench,
                "case": row.case,
                "value": row.value,
                "unit": row.unit,
                "against": row.against,
                "ratio": row.ratio,
            })
        })
        .collect();
    serde_json::to_string_pretty(&list)
        .map(|text| text + "\n")
        .map_err(|error| format!("cannot write the results: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::plan;

    fn template() -> Bench {
        plan::chosen(&["template".to_owned()]).unwrap().remove(0)
    }

    #[test]
    fn the_median_is_the_middle() {
        for (samples, middle) in [
            (&[3.0, 1.0, 2.0][..], 2.0),
            (&[4.0, 1.0, 2.0, 3.0], 2.5),
            (&[7.0], 7.0),
        ] {
            assert_eq!(median(samples), middle, "{samples:?}");
        }
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios_above_one_are_better_and_of_a_limit_the_share() {
        let samples = [
            ("meshca", vec![100.0, 100.0, 400.0]),
            ("go-parsed", vec![500.0, 600.0, 2000.0]),
        ];
        let rows = rows(&template(), &samples);
        let seen: Vec<_> = rows
            .iter()
            .map(|row| (row.against.as_str(), row.value, row.theirs, row.ratio))
            .collect();
        // The third contender was not there.
        assert_eq!(
            seen,
            [
                ("limit 200 ns", 100.0, 200.0, 2.0),
                ("go-parsed", 100.0, 600.0, 5.0)
            ]
        );
        let table = table(&rows);
        assert!(
            table.contains("| template/path | 100 ns | go-parsed    | 600 ns | 5.00  | ≥ 5    |"),
            "{table}"
        );
        let json: serde_json::Value = serde_json::from_str(&json(&rows).unwrap()).unwrap();
        assert_eq!(
            json[1],
            serde_json::json!({
                "bench": "template", "case": "path", "value": 100.0, "unit": "ns", "against": "go-parsed", "ratio": 5.0,
            })
        );
    }
}
