//! The table that every bench prints, and the same figures for `--json`.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) bench: &'static str,
    pub(crate) rounds: usize,
    pub(crate) rows: Vec<Row>,
    /// What a reader must know to read the table.
    pub(crate) notes: Vec<String>,
}

/// One system at one point of load.
#[derive(Serialize)]
pub(crate) struct Row {
    pub(crate) system: String,
    pub(crate) load: String,
    /// `None` where the system is not installed.
    pub(crate) figures: Option<Figures>,
}

#[derive(Serialize)]
pub(crate) struct Figures {
    /// Of the first system at the same load.
    pub(crate) ratio: f64,
    pub(crate) per_second: Spread,
    pub(crate) p50_ms: Spread,
    pub(crate) p99_ms: Spread,
    pub(crate) p999_ms: Spread,
    pub(crate) cpu_us_each: Spread,
    pub(crate) load_average: Spread,
    pub(crate) samples: Vec<Sample>,
}

/// One round's measurement.
#[derive(Serialize, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    /// CPU microseconds for one unit of work; of the server alone where it is a process of its own.
    pub(crate) cpu_us_each: f64,
    /// The machine's load average before the round.
    pub(crate) load_average: f64,
}

impl Sample {
    /// From the sorted durations of everything that was done in `seconds`.
    pub(crate) fn of(sorted: &[Duration], seconds: f64, cpu_seconds: f64, load_average: f64) -> Self {
        let count = sorted.iter().fold(0.0, |count, _| count + 1.0);
        Self {
            per_second: count / seconds,
            p50_ms: permille_ms(sorted, 500),
            p99_ms: permille_ms(sorted, 990),
            p999_ms: permille_ms(sorted, 999),
            cpu_us_each: cpu_seconds * 1e6 / count,
            load_average,
        }
    }
}

/// Median and range over the rounds.
#[derive(Serialize, Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    fn of(samples: &[Sample], pick: impl Fn(&Sample) -> f64) -> Self {
        let mut values: Vec<f64> = samples.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        let at = |position: usize| values.get(position).copied().unwrap_or(f64::NAN);
        Self { median: at(values.len() / 2), min: at(0), max: at(values.len().saturating_sub(1)) }
    }
}

impl Row {
    /// `base` are the samples of the first system at the same load.
    pub(crate) fn measured(system: &str, load: String, samples: Vec<Sample>, base: &[Sample]) -> Self {
        let per_second = Spread::of(&samples, |sample| sample.per_second);
        let figures = Figures {
            ratio: Spread::of(base, |sample| sample.per_second).median / per_second.median,
            per_second,
            p50_ms: Spread::of(&samples, |sample| sample.p50_ms),
            p99_ms: Spread::of(&samples, |sample| sample.p99_ms),
            p999_ms: Spread::of(&samples, |sample| sample.p999_ms),
            cpu_us_each: Spread::of(&samples, |sample| sample.cpu_us_each),
            load_average: Spread::of(&samples, |sample| sample.load_average),
            samples,
        };
        Self { system: system.to_owned(), load, figures: Some(figures) }
    }

    pub(crate) fn not_installed(system: &str, load: String) -> Self {
        Self { system: system.to_owned(), load, figures: None }
    }
}

/// The value at so many thousandths of sorted durations, in milliseconds.
fn permille_ms(sorted: &[Duration], permille: usize) -> f64 {
    let position = sorted.len().saturating_sub(1) * permille / 1_000;
    sorted.get(position).map_or(f64::NAN, |duration| duration.as_secs_f64() * 1_000.0)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "bench {}, medians of {} rounds (range)\n", self.bench, self.rounds)?;
        writeln!(
            f,
            "| system | load | per second | p50 ms | p99 ms | p999 ms | CPU µs each | outgate is … times as fast | load average |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|---|---|")?;
        for Row { system, load, figures } in &self.rows {
            match figures {
                None => writeln!(f, "| {system} | {load} | not installed | | | | | | |")?,
                Some(figures) => {
                    let Spread { median, min, max } = figures.per_second;
                    write!(f, "| {system} | {load} | {median:.0} ({min:.0}–{max:.0}) ")?;
                    write!(f, "| {:.2} | {:.2} ", figures.p50_ms.median, figures.p99_ms.median)?;
                    write!(f, "| {:.2} ", figures.p999_ms.median)?;
                    write!(f, "| {:.1} | {:.1} ", figures.cpu_us_each.median, figures.ratio)?;
                    writeln!(f, "| {:.1} |", figures.load_average.median)?;
                }
            }
        }
        self.notes.iter().try_for_each(|note| write!(f, "\n{note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_range_ratio_and_percentile() {
        let sample = |per_second| Sample {
            per_second,
            p50_ms: 1.0,
            p99_ms: 2.0,
            p999_ms: 2.5,
            cpu_us_each: 3.0,
            load_average: 0.5,
        };
        let base = [sample(100.0), sample(300.0), sample(200.0)];
        let row = Row::measured("peer", "1".to_owned(), vec![sample(50.0), sample(10.0), sample(20.0)], &base);
        let report = Report {
            bench: "x",
            rounds: 3,
            rows: vec![row, Row::not_installed("other", "1".to_owned())],
            notes: Vec::new(),
        };
        let text = report.to_string();
        assert!(text.contains("| peer | 1 | 20 (10–50) | 1.00 | 2.00 | 2.50 | 3.0 | 10.0 | 0.5 |"), "{text}");
        assert!(text.contains("| other | 1 | not installed |"), "{text}");
        let sorted: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        assert!((permille_ms(&sorted, 500) - 50.0).abs() < 1e-9 && (permille_ms(&sorted, 990) - 99.0).abs() < 1e-9);
    }
}
