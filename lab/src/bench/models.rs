//! Which models are measured with, as they are named on the command line.

use std::path::PathBuf;

/// A model to measure with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// What tables call it.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// The shape and type to make it of where the file is missing; none where it was named as a file.
    pub recipe: Option<(String, String)>,
}

impl ModelSpec {
    /// Reads `SHAPE`, `SHAPE:TYPE`, `FILE.gguf` or `NAME=FILE.gguf`.
    ///
    /// # Errors
    /// Says what a model looks like, where nothing was named.
    pub fn parse(text: &str, folder: &std::path::Path) -> Result<Self, String> {
        if text.ends_with(".gguf") {
            let (name, path) = match text.split_once('=') {
                Some((name, path)) => (name.to_owned(), PathBuf::from(path)),
                None => {
                    let path = PathBuf::from(text);
                    let stem = path.file_stem().map(|s| s.to_string_lossy().into_owned());
                    (stem.unwrap_or_default(), path)
                }
            };
            return Ok(ModelSpec {
                name,
                path,
                recipe: None,
            });
        }
        let (shape, kind) = text.split_once(':').unwrap_or((text, "f16"));
        if shape.is_empty() || kind.is_empty() {
            return Err(format!(
                "--model '{text}': write SHAPE:TYPE, such as llama3-8b:f16, or the name of a .gguf file"
            ));
        }
        let name = format!("{shape} {kind}");
        Ok(ModelSpec {
            path: folder.join(format!("{}.gguf", name.replace([' ', ',', '='], "-"))),
            name,
            recipe: Some((shape.to_owned(), kind.to_owned())),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn models_are_shapes_or_files() {
        let parse = |text| ModelSpec::parse(text, Path::new("/m"));
        let made = parse("llama3-8b:q4_0").unwrap();
        assert_eq!(made.name, "llama3-8b q4_0");
        assert_eq!(made.path, Path::new("/m/llama3-8b-q4_0.gguf"));
        assert!(made.recipe.is_some());
        let file = parse("a=/x/y.gguf").unwrap();
        assert_eq!(
            (file.name.as_str(), file.path.as_path()),
            ("a", Path::new("/x/y.gguf"))
        );
        assert_eq!(parse("/x/y.gguf").unwrap().name, "y");
        assert!(parse(":q4_0").unwrap_err().contains("SHAPE:TYPE"));
    }
}
