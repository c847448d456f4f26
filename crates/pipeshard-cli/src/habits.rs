//! What users of llama.cpp type: its spellings of flags, `-m MODEL`, numbers such as `4K`, and flags that mean something else
//! there.

use std::ffi::OsString;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Arg, ArgGroup, ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use pipeshard_model::inventory::DType;
use pipeshard_model::size::parse_count;

/// llama.cpp's short flags of several letters, which clap does not have, and the long ones that they stand for.
const SPELLINGS: [(&str, &str); 8] = [
    ("-ub", "--ubatch"),
    ("-np", "--parallel"),
    ("-kvu", "--kv-unified"),
    ("-ctk", "--cache-type-k"),
    ("-ctv", "--cache-type-v"),
    ("-fa", "--flash-attn"),
    ("-ngl", "--ngl"),
    ("-lm", "--load-mode"),
];

/// A command line as the parser reads it.
///
/// Short flags of several letters become long ones, with or without `=VALUE`. In long flags `_` stands for `-`, as in llama.cpp's
/// tools. What follows `--` is for another program and stays as it is.
pub fn spelled_out(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut flags = true;
    let word = |word: OsString| {
        flags &= word != "--";
        match word.to_str().filter(|_| flags) {
            Some(text) => long(text).map_or(word, OsString::from),
            None => word,
        }
    };
    words.into_iter().map(word).collect()
}

/// The long flag that a word stands for, where it is written in another way.
fn long(word: &str) -> Option<String> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (word, None),
    };
    let name = match SPELLINGS.iter().find(|(short, _)| *short == name) {
        Some((_, long)) => (*long).to_owned(),
        None if name.starts_with("--") && name.contains('_') => name.replace('_', "-"),
        None => return None,
    };
    Some(match value {
        Some(value) => format!("{name}={value}"),
        None => name,
    })
}

/// A model's file: `MODEL` or `-m MODEL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile(PathBuf);

impl Deref for ModelFile {
    type Target = Path;

    fn deref(&self) -> &Path {
        &self.0
    }
}

/// The same where a command needs no model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptionalModel(pub Option<PathBuf>);

/// The name of the two ways to give a model, for `conflicts_with`.
pub const MODEL: &str = "model-file";

fn model_arguments(command: Command, required: bool) -> Command {
    let file = || clap::value_parser!(PathBuf);
    command
        .arg(
            Arg::new("MODEL")
                .value_parser(file())
                .help("The model, a GGUF file (the first one, if it is split)"),
        )
        .arg(
            Arg::new("model")
                .short('m')
                .long("model")
                .value_name("MODEL")
                .value_parser(file())
                .help("The same, as llama.cpp's tools take it"),
        )
        .group(
            ArgGroup::new(MODEL)
                .args(["MODEL", "model"])
                .required(required),
        )
}

fn model_given(matches: &ArgMatches) -> Option<PathBuf> {
    let named = |name| matches.get_one::<PathBuf>(name);
    named("MODEL").or_else(|| named("model")).cloned()
}

impl FromArgMatches for ModelFile {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let missing = || {
            clap::Error::raw(
                ErrorKind::MissingRequiredArgument,
                "give a model, for example -m model.gguf\n",
            )
        };
        model_given(matches).map(Self).ok_or_else(missing)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ModelFile {
    fn augment_args(command: Command) -> Command {
        model_arguments(command, true)
    }

    fn augment_args_for_update(command: Command) -> Command {
        model_arguments(command, false)
    }
}

impl FromArgMatches for OptionalModel {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(model_given(matches)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for OptionalModel {
    fn augment_args(command: Command) -> Command {
        model_arguments(command, false)
    }

    fn augment_args_for_update(command: Command) -> Command {
        model_arguments(command, false)
    }
}

/// `--prompt`, which is a text in llama.cpp, where a command wants a length.
#[derive(Debug, Clone, Default, Args)]
pub struct NoPrompt {
    #[arg(long = "prompt", hide = true, value_parser = no_prompt)]
    prompt_text: Option<String>,
}

/// Flags of llama.cpp's tools that commands cannot take: each ends in an error that says what to write.
#[derive(Debug, Clone, Default, Args)]
pub struct NotTaken {
    #[arg(long = "prompt", short = 'p', hide = true, value_parser = no_prompt)]
    prompt_text: Option<String>,
    #[arg(
        long = "ngl", aliases = ["gpu-layers", "n-gpu-layers"], hide = true, allow_hyphen_values = true,
        value_parser = no_layers
    )]
    gpu_layers: Option<String>,
}

fn no_prompt(text: &str) -> Result<String, String> {
    let lengths = text.split(',').all(|length| parse_count(length).is_ok());
    let example = if lengths { text } else { "2048" };
    Err(format!(
        "--prompt is a text in llama.cpp, and this command takes a length in tokens: write --prompt-tokens {example}"
    ))
}

fn no_layers(_: &str) -> Result<String, String> {
    Err("pipeshard decides by itself what the GPU holds: leave -ngl out".to_owned())
}

/// A number such as `4096`, `4k` or `1M`.
///
/// # Errors
/// A sentence for the user.
pub fn count(text: &str) -> Result<u32, String> {
    let number = parse_count(text).map_err(|why| why.to_string())?;
    u32::try_from(number).map_err(|_| format!("{text} is more than the largest one, {}", u32::MAX))
}

/// The same, and at least 1.
///
/// # Errors
/// A sentence for the user.
pub fn positive(text: &str) -> Result<u32, String> {
    match count(text)? {
        0 => Err("it must be 1 or more".to_owned()),
        number => Ok(number),
    }
}

/// CPU threads.
///
/// # Errors
/// A sentence for the user.
pub fn threads(text: &str) -> Result<u32, String> {
    match count(text)? {
        number @ 1..=512 => Ok(number),
        _ => Err("give 1 to 512 threads".to_owned()),
    }
}

/// A type that a KV cache can have.
///
/// # Errors
/// A sentence that lists them.
pub fn cache_type(name: &str) -> Result<&'static DType, String> {
    const USABLE: [&str; 9] = [
        "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1",
    ];
    let usable = USABLE.contains(&name).then(|| DType::from_name(name));
    let no_type = || {
        format!(
            "a KV cache has no such type; use one of {}",
            USABLE.join(", ")
        )
    };
    usable.flatten().ok_or_else(no_type)
}

/// Threads as the parameters of llama.cpp have them; by default as many as its own tools use, one per (performance) core.
pub fn llama_threads(given: Option<u32>) -> i32 {
    let threads = given.unwrap_or_else(pipeshard::profile::default_threads);
    i32::try_from(threads).unwrap_or(i32::MAX)
}

/// Flash attention, as llama.cpp's tools take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FlashAttn {
    /// Where the device can
    #[value(alias = "-1")]
    Auto,
    /// Always
    #[value(alias = "1")]
    On,
    /// Never
    #[value(alias = "0")]
    Off,
}

impl FlashAttn {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            FlashAttn::Auto => "auto",
            FlashAttn::On => "on",
            FlashAttn::Off => "off",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cli;
    use clap::Parser;

    fn spelled(line: &str) -> String {
        let words = spelled_out(line.split(' ').map(OsString::from));
        let words: Vec<String> = words
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        words.join(" ")
    }

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(spelled_out(line.split(' ').map(OsString::from)))
    }

    fn refused(line: &str) -> String {
        parse(line).expect_err(line).to_string()
    }

    #[test]
    fn short_flags_of_several_letters_are_llamas() {
        assert_eq!(
            spelled("pipeshard plan -m m.gguf -ub 512 -ctk=q8_0 --cache_type_v q4_0"),
            "pipeshard plan -m m.gguf --ubatch 512 --cache-type-k=q8_0 --cache-type-v q4_0"
        );
        // neither values nor what another program gets
        assert_eq!(
            spelled("pipeshard bench a_b.gguf --svg=a_b -- -ub 512 --n_x"),
            "pipeshard bench a_b.gguf --svg=a_b -- -ub 512 --n_x"
        );
        for (short, long) in SPELLINGS {
            assert_eq!(spelled(short), long);
        }
    }

    #[test]
    fn every_command_takes_llamas_flags() {
        for line in [
            "pipeshard plan -m m.gguf --vram 6G -c 16k -b 4K -ub 2k -np 4 -kvu -ctk q8_0 -ctv q8_0 -t 8 -n 1k -fa on",
            "pipeshard tune -m m.gguf --vram 6G -c 16k -ub 2k -np 4 -ctk q8_0 -ctv q8_0 -t 8 -n 64 -fa auto",
            "pipeshard profile -m m.gguf -ctk q8_0 -ctv q8_0 -t 8",
            "pipeshard bench -m m.gguf --vram 6G -p 4K -n 1k -d 8k -ub 512 -b 2k -ctk q8_0 -ctv q8_0 -t 8 -fa 1 -- -ngl 9",
            "pipeshard verify -m m.gguf --vram 6G -c 2k -b 1k -ub 512 -ctk q8_0 -ctv q8_0 -t 8 -n 8 -fa off",
            "pipeshard eval -m m.gguf -c 2k -b 1k -ub 512 -ctk q8_0 -ctv q8_0 -t 8 -n 8 -fa off -ngl 3 -lm none",
        ] {
            if let Err(why) = parse(line) {
                panic!("{line}: {why}");
            }
        }
    }

    #[test]
    fn a_model_is_given_once_and_in_either_way() {
        let model = |line: &str| match parse(line).unwrap().command {
            crate::Command::Verify(args) => args.model.to_path_buf(),
            _ => panic!("{line}"),
        };
        let verify = "pipeshard verify --vram 1G";
        for given in ["m.gguf", "-m m.gguf", "--model m.gguf", "--model=m.gguf"] {
            assert_eq!(model(&format!("{verify} {given}")), Path::new("m.gguf"));
        }
        assert!(refused(&format!("{verify} a.gguf -m b.gguf")).contains("cannot be used with"));
        let missing = refused(verify);
        assert!(
            missing.contains("required") && missing.contains("MODEL"),
            "{missing}"
        );
        assert!(parse("pipeshard profile").is_ok());
        assert!(refused("pipeshard profile -m a.gguf --profile x").contains("cannot be used"));
    }

    #[test]
    fn what_means_something_else_in_llama_names_the_flag_to_use() {
        for (line, named) in [
            ("plan m.gguf --vram 1G --prompt 2K", "--prompt-tokens 2K"),
            ("plan m.gguf --vram 1G -p hello", "--prompt-tokens 2048"),
            (
                "verify m.gguf --vram 1G --prompt 1,7",
                "--prompt-tokens 1,7",
            ),
            ("bench m.gguf --vram 1G --prompt 512", "--prompt-tokens 512"),
            ("eval m.gguf --prompt 512", "--prompt-tokens 512"),
            ("plan m.gguf --vram 1G -ngl 99", "leave -ngl out"),
            ("verify m.gguf --vram 1G -ngl -1", "leave -ngl out"),
            ("plan m.gguf --vram 1G -fa off", "-fa off"),
        ] {
            let why = refused(&format!("pipeshard {line}"));
            assert!(why.contains(named), "{line}: {why}");
        }
    }

    #[test]
    fn numbers_have_units_and_limits() {
        assert_eq!(count("4k"), Ok(4096));
        assert_eq!(count("0"), Ok(0));
        assert!(count("4G").unwrap_err().contains("largest"));
        assert!(count("4x").unwrap_err().contains("4k"));
        assert!(positive("0").is_err());
        assert!(threads("0").is_err() && threads("513").is_err());
        assert_eq!(llama_threads(Some(3)), 3);
        assert!(llama_threads(None) >= 1);
    }
}
