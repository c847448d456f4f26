//! Models in the folders in which hosts keep them: `FOLDER/nvigi.plugin.gpt.ggml/{GUID}/`, with a GGUF and a card,
//! `nvigi.model.config.json`.

use crate::abi::result;
use crate::refusal::Refusal;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The folder of all plug-ins whose names begin so.
const PLUGIN: &str = "nvigi.plugin.gpt.ggml";
/// Names of cards, the newer first.
const CARDS: [&str; 2] = ["nvigi.model.config.json", "model.json"];
/// Folders inside a model's folder are looked into to this depth.
const DEEPEST: usize = 8;

/// A model that can be opened.
pub struct Found {
    pub guid: String,
    pub name: String,
    pub file: PathBuf,
    /// The encoder of images, where the card names one.
    pub encoder: Option<PathBuf>,
    /// Jinja, of the card.
    pub chat_template: Option<String>,
}

fn refused(code: u32, text: String) -> Refusal {
    Refusal::new(code, text)
}

/// `{8-4-4-4-12}`: nothing else becomes part of a path.
fn is_guid(text: &str) -> bool {
    let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}'));
    let parts: Vec<&str> = inner.unwrap_or_default().split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    lengths == [8, 4, 4, 4, 12]
        && parts
            .iter()
            .all(|part| part.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// All files in a folder, and in those inside it, in order.
fn files_in(folder: &Path, depth: usize, into: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        match path.is_dir() {
            true if depth < DEEPEST => files_in(&path, depth + 1, into)?,
            true => {}
            false => into.push(path),
        }
    }
    Ok(())
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The card in a folder.
fn card_in(folder: &Path) -> Result<Option<Value>, Refusal> {
    let mut files = Vec::new();
    if !folder.is_dir() || files_in(folder, 0, &mut files).is_err() {
        return Ok(None);
    }
    let named = CARDS
        .iter()
        .find_map(|card| files.iter().find(|file| name_of(file) == *card));
    let Some(path) = named else {
        return Ok(None);
    };
    let text = std::fs::read_to_string(path).map_err(|why| {
        refused(
            result::INPUT_OUTPUT,
            format!("{} cannot be read: {why}", path.display()),
        )
    })?;
    parsed(&text, &path.display().to_string()).map(Some)
}

fn parsed(text: &str, what: &str) -> Result<Value, Refusal> {
    serde_json::from_str(text)
        .map_err(|why| refused(result::JSON, format!("{what} is not valid JSON: {why}")))
}

/// Texts in a list of the card.
fn list(value: &Value) -> Vec<&str> {
    let list = value.as_array().map_or(&[][..], Vec::as_slice);
    list.iter().filter_map(Value::as_str).collect()
}

/// Files that the card lists, as they stand there.
fn listed(card: &Value) -> Vec<&str> {
    match &list(&card["model"]["local_files"])[..] {
        [] => list(&card["local_files"]),
        files => files.to_vec(),
    }
}

/// Files of a model in a folder: those that the card lists, or all.
fn files_of(card: &Value, folder: &Path) -> Result<Vec<PathBuf>, Refusal> {
    let listed = listed(card);
    let mut files: Vec<PathBuf> = listed
        .iter()
        .map(|file| match Path::new(file) {
            path if path.is_absolute() => path.to_owned(),
            path => folder.join(path),
        })
        .collect();
    if files.is_empty() {
        let read = files_in(folder, 0, &mut files);
        read.map_err(|why| {
            refused(
                result::INPUT_OUTPUT,
                format!("{} cannot be read: {why}", folder.display()),
            )
        })?;
    }
    Ok(files)
}

/// The GGUF that is to be opened, of one in several files the first, and the encoder of images. `place`: where they are.
fn weights_of(
    card: &Value,
    mut files: Vec<PathBuf>,
    place: &str,
) -> Result<(PathBuf, Option<PathBuf>), Refusal> {
    let suffix = card["weights"].as_str().unwrap_or_default();
    let encoder = card["mmproj_weights"].as_str().unwrap_or_default();
    let is_named = |file: &PathBuf| !encoder.is_empty() && name_of(file).ends_with(encoder);
    let found = files.iter().find(|file| is_named(file)).cloned();
    if found.is_none() && !encoder.is_empty() {
        return Err(refused(
            result::NOT_FOUND,
            format!("there is no file {encoder} in {place}, which mmproj_weights of the model's card names"),
        ));
    }
    files.retain(|file| {
        let name = name_of(file);
        let is_encoder = name.contains("mmproj") || is_named(file);
        let is_later_part = name.contains("-of-") && !name.contains("-00001-of-");
        name.ends_with(".gguf") && name.ends_with(suffix) && !is_encoder && !is_later_part
    });
    match &files[..] {
        [one] => Ok((one.clone(), found)),
        [] => Err(refused(
            result::NOT_FOUND,
            format!(
                "there is no GGUF for the model in {place}; see model.local_files and weights of its card"
            ),
        )),
        several => Err(Refusal::invalid(format!(
            "{} and {} lie in one folder: name one in model.local_files or weights of the model's card",
            several[0].display(),
            name_of(&several[1])
        ))),
    }
}

/// The model of a card, whose files the host reads by the names that stand there.
pub fn of_host(guid: &str, card: Option<&str>) -> Result<Found, Refusal> {
    let card = card.ok_or_else(|| {
        Refusal::invalid(
            "FileIOCallbacks need modelCardJSON: its model.local_files are the names of the files",
        )
    })?;
    let card = parsed(card, "modelCardJSON")?;
    let files = listed(&card).into_iter().map(PathBuf::from).collect();
    found(guid, &card, weights_of(&card, files, "model.local_files")?)
}

fn found(
    guid: &str,
    card: &Value,
    (file, encoder): (PathBuf, Option<PathBuf>),
) -> Result<Found, Refusal> {
    let template = match card["chat_template"].as_str() {
        Some(text) => text.to_owned(),
        None => list(&card["chat_template"]).concat(),
    };
    Ok(Found {
        file,
        encoder,
        name: card["name"].as_str().unwrap_or(guid).to_owned(),
        guid: guid.to_owned(),
        chat_template: (!template.is_empty()).then_some(template),
    })
}

/// The model with this GUID: a card of the host's, or the one in the folders.
pub fn find(guid: &str, roots: &[String], given_card: Option<&str>) -> Result<Found, Refusal> {
    if !is_guid(guid) {
        return Err(Refusal::invalid(format!(
            "modelGUID is '{guid}'; it has the form {{01234567-89AB-CDEF-0123-456789ABCDEF}}"
        )));
    }
    let folders = roots.iter().map(|root| Path::new(root).join(PLUGIN));
    let folder = folders
        .flat_map(|folder| {
            [guid.to_owned(), guid.to_uppercase(), guid.to_lowercase()].map(|g| folder.join(g))
        })
        .find(|folder| folder.is_dir())
        .ok_or_else(|| {
            refused(
                result::NOT_FOUND,
                format!(
                    "there is no folder {PLUGIN}/{guid} in {}",
                    roots.join(" or ")
                ),
            )
        })?;
    let card = match given_card {
        Some(text) => parsed(text, "modelCardJSON")?,
        None => {
            let mut card = None;
            for root in roots {
                let ahead = Path::new(root).join("configs").join(PLUGIN).join(guid);
                card = card.or(card_in(&ahead)?);
            }
            match card {
                Some(card) => card,
                None => card_in(&folder)?.unwrap_or(Value::Null),
            }
        }
    };
    let files = files_of(&card, &folder)?;
    let place = folder.display().to_string();
    found(guid, &card, weights_of(&card, files, &place)?)
}

/// The GUIDs of all models in the folders, in order.
pub fn guids(roots: &[String]) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for root in roots {
        let Ok(entries) = std::fs::read_dir(Path::new(root).join(PLUGIN)) else {
            continue;
        };
        let names = entries.filter_map(|entry| Some(name_of(&entry.ok()?.path())));
        found.extend(names.filter(|name| is_guid(name)));
    }
    found.sort();
    found.dedup();
    found
}
