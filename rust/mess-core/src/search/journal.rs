//! A file that lets a search go on where another one was killed.
//!
//! One line a fact, appended and flushed as it becomes known:
//!
//! ```text
//! mess-search-journal 3 <key>                      what is searched: a hash of table and query
//! found <exit>,<exit> <pixel>:<bits of the image threshold> ...
//! done <check> <bits of the gap> <task>            nothing better than what was found so far is in there
//! ```
//!
//! A task that is done says something about the configurations found before it, so these are written first, and `check`
//! is a hash of them and of the line: it is believed only where the same configurations are read before it. A line that is
//! damaged or missing, or another process that writes at the same time, costs work and never the answer. A last line
//! without its end is cut off: it was being written when the process died. Where writing fails nothing more is written.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::evaluate;
use super::objective::Query;
use super::outcome::{Configuration, Gate};
use super::table::Table;
use crate::error::{Error, Result};

const HEADER: &str = "mess-search-journal 3";

/// An open journal.
#[derive(Debug)]
pub struct Journal {
    /// Configurations found by those who wrote before.
    pub known: Vec<Configuration>,
    done: HashSet<String>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    /// Configurations that the file has, and what stands for all of them in a `check`.
    written: HashSet<String>,
    all: u64,
    failed: Option<String>,
}

impl Journal {
    /// Open or create the journal of this search.
    ///
    /// # Errors
    /// [`Error::Value`] when the file cannot be read or written, or belongs to another search.
    pub fn open(path: &Path, table: &Table<'_>, query: &Query) -> Result<Self> {
        let fails = |error: std::io::Error| Error::value("journal", "a file that can be written", error);
        let key = format!("{HEADER} {:016x}", key(table, query));
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(fails)?;
        if !file.metadata().map_err(fails)?.is_file() {
            return Err(Error::value("journal", "a file that can be written", path.display()));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(fails)?;
        let num_whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let (whole, torn) = bytes.split_at(num_whole);
        let (whole, torn) = (String::from_utf8_lossy(whole), String::from_utf8_lossy(torn));
        let mut lines = whole.lines();
        let first = lines.next().unwrap_or(&torn);
        let is_begun = whole.is_empty() && key.starts_with(first); // killed while it wrote its first line
        if first != key && !is_begun {
            let first: String = first.chars().take(80).collect();
            return Err(Error::value("journal", format!("one of this table and search ({key})"), first));
        }
        // nothing is cut off but a torn last line of a journal
        if num_whole < bytes.len() {
            // one that appends may not do so on Windows
            OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(num_whole as u64)).map_err(fails)?;
        }
        if whole.is_empty() {
            file.write_all(format!("{key}\n").as_bytes()).map_err(fails)?;
        }
        let (mut known, mut done) = (Vec::new(), HashSet::new());
        let (mut found, mut all) = (HashSet::new(), 0);
        for line in lines {
            match line.split_once(' ') {
                Some(("found", rest)) => {
                    if let Some(configuration) = parsed(rest)
                        && evaluate::check(table, query.scoring.setting, &configuration).is_ok()
                        && found.insert(rest.to_string())
                    {
                        known.push(configuration);
                        all ^= hash(rest);
                    }
                }
                Some(("done", rest)) => {
                    if let Some((check, task)) = rest.split_once(' ')
                        && check == self::check(all, task)
                    {
                        done.insert(task.to_string());
                    }
                }
                _ => {}
            }
        }
        let state = State { file, written: found, all, failed: None };
        Ok(Self { known, done, state: Mutex::new(state) })
    }

    /// Whether a task was finished before with this gap.
    pub fn is_done(&self, gap: f64, task: &str) -> bool {
        self.done.contains(&format!("{:016x} {task}", gap.to_bits()))
    }

    /// Write that tasks are finished, after what was found up to then. Tells of errors in [`Self::check`].
    pub fn finish(&self, gap: f64, tasks: &[String], found: &[Configuration]) {
        let mut guard = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *guard;
        if state.failed.is_some() {
            return; // what comes behind a torn line would not be read
        }
        let mut lines = String::new();
        for configuration in found.iter().map(written) {
            if !state.written.contains(&configuration) {
                lines.push_str(&format!("found {configuration}\n"));
                state.all ^= hash(&configuration);
                state.written.insert(configuration);
            }
        }
        for task in tasks {
            let task = format!("{:016x} {task}", gap.to_bits());
            lines.push_str(&format!("done {} {task}\n", check(state.all, &task)));
        }
        if let Err(error) = state.file.write_all(lines.as_bytes()) {
            state.failed = Some(error.to_string());
        }
    }

    /// # Errors
    /// [`Error::Value`] when something could not be written: a full disk, for example.
    pub fn check(&self) -> Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.failed {
            Some(error) => Err(Error::value("journal", "a file that can be written", error)),
            None => Ok(()),
        }
    }
}

/// What a `done` line says about the configurations found before it, all of them together, and about the rest of the line.
fn check(all: u64, task: &str) -> String {
    format!("{:016x}", all ^ hash(task))
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn written(configuration: &Configuration) -> String {
    let exits: Vec<String> = configuration.exits.iter().map(usize::to_string).collect();
    let gate = |gate: &Gate| format!(" {}:{:016x}", gate.pixel_threshold, gate.image_threshold.to_bits());
    exits.join(",") + &configuration.gates.iter().map(gate).collect::<String>()
}

fn parsed(text: &str) -> Option<Configuration> {
    let mut parts = text.split(' ');
    let exits = parts.next()?.split(',').map(|exit| exit.parse().ok()).collect::<Option<Vec<usize>>>()?;
    let gate = |part: &str| {
        let (pixel, bits) = part.split_once(':')?;
        let image_threshold = f64::from_bits(u64::from_str_radix(bits, 16).ok()?);
        Some(Gate { pixel_threshold: pixel.parse().ok()?, image_threshold })
    };
    Some(Configuration { exits, gates: parts.map(gate).collect::<Option<Vec<Gate>>>()? })
}

/// A hash of everything that the answer depends on.
fn key(table: &Table<'_>, query: &Query) -> u64 {
    let mut hasher = DefaultHasher::new();
    for counts in [&table.intersection, &table.predicted] {
        counts.shape().hash(&mut hasher);
        counts.iter().for_each(|count| count.hash(&mut hasher));
    }
    table.ground_truth.iter().for_each(|count| count.hash(&mut hasher));
    table.points.iter().for_each(|point| point.hash(&mut hasher));
    table.image_confidence.shape().hash(&mut hasher);
    table.image_confidence.iter().for_each(|confidence| confidence.to_bits().hash(&mut hasher));
    for costs in [&table.backbone_cost, &table.head_cost, &table.policy_cost] {
        costs.iter().for_each(|cost| cost.to_bits().hash(&mut hasher));
    }
    (0..table.num_images()).for_each(|image| table.weight(image).hash(&mut hasher));
    format!("{query:?}").hash(&mut hasher);
    hasher.finish()
}
