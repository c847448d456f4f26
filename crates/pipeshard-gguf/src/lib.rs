//! GGUF files: a model's inventory from the header of one ([`inventory_of`]), as ggml's own reader sees it, and the bytes of a
//! header ([`container`]) for writers.

pub mod container;
mod error;
mod file;

use std::path::Path;

use pipeshard_model::inventory::{Inventory, MissingKey};

pub use error::InventoryError;
pub use file::GgufFile;

/// Takes the inventory of a GGUF file (or of the pieces of a split one) from its header; no weights are read.
///
/// # Errors
/// [`InventoryError`] when the file is missing, empty, foreign, cut short or damaged, is not a language model, or a
/// piece of it is missing.
pub fn inventory_of(path: &Path) -> Result<Inventory, InventoryError> {
    let pieces = file::open_all(path)?;
    let file_bytes = pieces.iter().map(GgufFile::file_bytes).sum();
    let loaded = pieces.iter().flat_map(GgufFile::tensors);
    let [first, ..] = &pieces[..] else {
        unreachable!("open_all returns the given file at least");
    };
    let mut inventory = Inventory::from_loaded(loaded, first)
        .map_err(|missing| no_model(path, &missing, first.architecture()))?;
    inventory.file_bytes = file_bytes;
    Ok(inventory)
}

fn no_model(path: &Path, missing: &MissingKey, architecture: Option<String>) -> InventoryError {
    let key = &missing.key;
    let reason = match architecture {
        Some(architecture) => {
            format!("its architecture is '{architecture}' and it has no usable {key}")
        }
        None => format!("it has no usable {key}"),
    };
    InventoryError::NotAModel {
        path: path.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests;
