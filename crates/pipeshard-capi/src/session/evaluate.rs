//! What a context holds, and bringing it to what it should hold.

use super::activity::Activity;
use super::context::Settings;
use super::conversation::{tokens_of, Conversation};
use crate::failure::{Code, Failure};
use crate::media::{Chunk, Part};
use crate::orders::Order;
use crate::process::{with_errors, Errors};
use pipeshard_llama::{Batch, Context, LlamaError};
use runtime::hook::stopping::watching;
use std::sync::atomic::Ordering;

/// What llama_decode says where a pass was ended early.
const ENDED_EARLY: i32 = 2;

/// What a part of the KV cache holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    Token(i32),
    Media {
        id: String,
        positions: i32,
        tokens: u32,
    },
}

impl Piece {
    fn of(chunk: &Chunk) -> Self {
        Piece::Media {
            id: chunk.id.clone(),
            positions: chunk.positions,
            tokens: chunk.tokens,
        }
    }

    fn positions(&self) -> i32 {
        match self {
            Piece::Token(_) => 1,
            Piece::Media { positions, .. } => *positions,
        }
    }

    fn tokens(&self) -> u32 {
        match self {
            Piece::Token(_) => 1,
            Piece::Media { tokens, .. } => *tokens,
        }
    }
}

/// Positions that pieces take.
pub fn positions(pieces: &[Piece]) -> i32 {
    pieces.iter().map(Piece::positions).sum()
}

/// Tokens of the KV cache that they take.
pub fn taken(pieces: &[Piece]) -> u32 {
    pieces.iter().map(Piece::tokens).sum()
}

/// Something that is evaluated at once.
enum Step {
    Tokens(Vec<i32>),
    Media(Chunk),
}

/// A context, or what is left of it while the session sleeps.
pub enum Place {
    Awake(Context<'static>),
    /// The KV cache as bytes; none where it was empty.
    Asleep(Vec<u8>),
}

/// A context, and what it holds.
pub struct Work {
    pub place: Place,
    /// What contexts are made with, and compute with: dropped after them.
    pub settings: Settings,
    pub held: Vec<Piece>,
    pub conversation: Conversation,
    /// Tokens that there is room for.
    pub room: u32,
    /// Tokens of a batch.
    pub batch: u32,
}

impl Work {
    /// Keeps the KV cache in host memory, and frees the context.
    ///
    /// # Errors
    /// The host has no memory for it.
    pub fn sleep(&mut self) -> Result<(), Failure> {
        if let Place::Asleep(_) = self.place {
            return Ok(());
        }
        let cache = self.cache();
        if cache.is_empty() && !self.held.is_empty() {
            return Err(Failure::new(
                Code::NoMemory,
                "the host has no memory for the KV cache of a session",
            ));
        }
        self.place = Place::Asleep(cache);
        Ok(())
    }

    /// Makes the context again, if the session sleeps.
    ///
    /// # Errors
    /// There is no room for it: it goes on sleeping.
    pub fn wake(&mut self, activity: &Activity) -> Result<(), Failure> {
        let Place::Asleep(cache) = &self.place else {
            return Ok(());
        };
        let mut context = self.settings.make(activity)?;
        if !cache.is_empty() {
            let taken = context.set_sequence_state(0, cache);
            taken
                .map_err(|_| Failure::new(Code::Internal, "llama.cpp refuses its own KV cache"))?;
        }
        self.place = Place::Awake(context);
        Ok(())
    }

    /// Gives its memory back, or takes it again.
    ///
    /// # Errors
    /// As [`Work::sleep`] and [`Work::wake`].
    pub fn follow(&mut self, activity: &Activity, order: Order) -> Result<(), Failure> {
        match order {
            Order::Wake => self.wake(activity),
            Order::Sleep => {
                self.sleep()?;
                activity.model.close_encoder();
                Ok(())
            }
        }
    }

    /// Follows the orders that there are. To be called where nothing would be lost with the context: no logits are wanted any more.
    ///
    /// # Errors
    /// There is no room for the context any more: the session sleeps.
    fn follow_orders(&mut self, activity: &Activity) -> Result<(), Failure> {
        let orders = &activity.model.device.orders;
        if !orders.are_given() {
            return Ok(());
        }
        let mut number = 0;
        while let Some((now, order)) = orders.after(number) {
            number = now;
            let done = self.follow(activity, order);
            activity.has_followed(Some((now, done)));
        }
        activity.has_followed(None);
        self.wake(activity)
    }

    /// The KV cache as bytes; none where it is empty.
    pub fn cache(&mut self) -> Vec<u8> {
        match &mut self.place {
            Place::Awake(context) if !self.held.is_empty() => context.sequence_state(0),
            Place::Awake(_) => Vec::new(),
            Place::Asleep(cache) => cache.clone(),
        }
    }

    /// The context.
    ///
    /// # Errors
    /// The session sleeps; who evaluates wakes it first.
    pub fn context(&mut self) -> Result<&mut Context<'static>, Failure> {
        match &mut self.place {
            Place::Awake(context) => Ok(context),
            Place::Asleep(_) => Err(Failure::new(Code::Internal, "the session sleeps")),
        }
    }

    /// Takes out everything behind the first `count` pieces, or all where the model cannot do that.
    fn keep(&mut self, count: usize) -> Result<(), Failure> {
        if count == self.held.len() {
            return Ok(());
        }
        let from = positions(&self.held[..count]);
        match count > 0 && self.context()?.remove(0, from, -1) {
            true => self.held.truncate(count),
            false => self.forget(),
        }
        Ok(())
    }

    /// Takes out everything.
    pub fn forget(&mut self) {
        match &mut self.place {
            Place::Awake(context) => context.clear(),
            Place::Asleep(cache) => cache.clear(),
        }
        self.held.clear();
    }

    /// Brings the context to what the conversation is so far, so that there are logits for what comes next. Returns how many tokens
    /// were evaluated, and how many did not have to be.
    pub fn catch_up(&mut self, activity: &Activity) -> Result<(u32, u32), Failure> {
        let parts = match self.conversation.without_roles {
            true => {
                let conversation = &mut self.conversation;
                let begins = conversation.tokens.is_empty();
                if begins || !conversation.text.is_empty() {
                    let more = tokens_of(&activity.model, &conversation.text, begins)?;
                    conversation.tokens.extend(more);
                    conversation.text.clear();
                }
                vec![Part::Tokens(conversation.tokens.clone())]
            }
            false => self.conversation.prompt(&activity.model)?,
        };
        let (steps, wanted) = steps_of(parts);
        if wanted.is_empty() {
            return Err(Failure::invalid(
                "there is nothing to answer: add a message first",
            ));
        }
        let (needed, room) = (taken(&wanted), self.room);
        if needed >= room {
            return Err(Failure::new(
                Code::ContextFull,
                format!(
                    "the conversation takes {needed} tokens, and the session has room for {room}: truncate it, or open a session with a \
                     larger context"
                ),
            ));
        }
        // logits are those of the last token, which is evaluated in any case
        let same = wanted.iter().zip(&self.held).take_while(|(a, b)| a == b);
        let same = same.count().min(wanted.len() - 1);
        self.keep(same)?;
        let reused = taken(&self.held);
        let skip = self.held.len();
        self.run(activity, steps, skip)?;
        Ok((needed - reused, reused))
    }

    /// Evaluates the pieces of `steps` behind the first `skip`.
    fn run(
        &mut self,
        activity: &Activity,
        steps: Vec<Step>,
        mut skip: usize,
    ) -> Result<(), Failure> {
        let count = steps.len();
        for (index, step) in steps.into_iter().enumerate() {
            let last = index + 1 == count;
            match step {
                Step::Tokens(tokens) => {
                    let begin = skip.min(tokens.len());
                    skip -= begin;
                    self.tokens(activity, &tokens[begin..], last)?;
                }
                Step::Media(_) if skip > 0 => skip -= 1,
                Step::Media(chunk) => self.media(activity, &chunk, last)?,
            }
        }
        Ok(())
    }

    /// Evaluates tokens behind what is held; logits are wanted for the last one, if for any.
    pub fn tokens(
        &mut self,
        activity: &Activity,
        tokens: &[i32],
        logits: bool,
    ) -> Result<(), Failure> {
        let most = self.batch as usize;
        let mut left = tokens;
        while !left.is_empty() {
            self.follow_orders(activity)?;
            let now = &left[..left.len().min(most.max(1))];
            let begin = positions(&self.held);
            let mut batch = Batch::new();
            for (i, &token) in now.iter().enumerate() {
                let wanted = logits && i + 1 == left.len();
                batch.add(token, begin + i as i32, &[0], wanted);
            }
            let context = self.context()?;
            let code = activity.pass(true, || match context.decode(&mut batch) {
                Ok(()) => 0,
                Err(LlamaError::Decode { code, .. }) => code,
                Err(_) => -1,
            });
            // of a batch that ends early some ubatches may be there
            let done = match code {
                Ok(()) => now.len(),
                Err(_) => {
                    (context.last_position(0) + 1 - begin).clamp(0, now.len() as i32) as usize
                }
            };
            // llama.cpp cannot say where a recurrent model is; of a batch that was wanted to the end the logits are missing
            let done = match code {
                Err(_) if done == now.len() => 0,
                _ => done,
            };
            self.held
                .extend(now[..done].iter().map(|&t| Piece::Token(t)));
            left = &left[done..];
            if let Err(ended) = code {
                self.recover(begin, done)?;
                ended.go_on(activity)?;
            }
        }
        Ok(())
    }

    /// After a pass that ended early the context holds what was there before it, and `done` more.
    fn recover(&mut self, begin: i32, done: usize) -> Result<(), Failure> {
        let end = begin + done as i32;
        // nothing is known to lie behind it; a model that cannot take a part out begins anew
        if self.context()?.remove(0, end, -1) {
            return Ok(());
        }
        self.forget();
        Err(Failure::new(
            Code::Cancelled,
            "the pass ended early, and this model cannot go back: what it was told is evaluated again with the next generation",
        ))
    }

    /// Encodes an image, and evaluates it behind what is held.
    fn media(&mut self, activity: &Activity, chunk: &Chunk, logits: bool) -> Result<(), Failure> {
        self.follow_orders(activity)?;
        let batch = self.batch as i32;
        let past = positions(&self.held);
        let context = self.context()?;
        let ended = activity.model.with_encoder(|encoder| {
            // mtmd does not say where it ended, so memory is given back when it is over
            Ok(activity.pass(false, || {
                let (code, _) = encoder.evaluate(context, chunk, past, batch, logits);
                code
            }))
        })?;
        if let Err(ended) = ended {
            self.recover(past, 0)?;
            return Err(ended.into_failure(activity));
        }
        self.held.push(Piece::of(chunk));
        Ok(())
    }
}

/// Parts as steps, and as what the KV cache holds after them.
fn steps_of(parts: Vec<Part>) -> (Vec<Step>, Vec<Piece>) {
    let mut pieces = Vec::new();
    let mut steps = Vec::new();
    for part in parts {
        match part {
            Part::Tokens(tokens) => {
                pieces.extend(tokens.iter().map(|&token| Piece::Token(token)));
                steps.push(Step::Tokens(tokens));
            }
            Part::Media(chunk) => {
                pieces.push(Piece::of(&chunk));
                steps.push(Step::Media(chunk));
            }
        }
    }
    (steps, pieces)
}

/// A pass that did not get to its end.
pub struct Ended {
    code: i32,
    errors: Errors,
}

impl Ended {
    /// Goes on where the pass was ended for somebody who needed memory; fails where it was cancelled, or failed.
    fn go_on(self, activity: &Activity) -> Result<(), Failure> {
        if self.code == ENDED_EARLY && !activity.stop.load(Ordering::Relaxed) {
            activity.noted(|state| state.evaluated_again += 1);
            return Ok(());
        }
        Err(self.into_failure(activity))
    }

    fn into_failure(self, activity: &Activity) -> Failure {
        if activity.stop.load(Ordering::Relaxed) {
            return Failure::new(Code::Cancelled, "the generation was cancelled");
        }
        let device = &activity.model.device;
        match self.code {
            // mtmd says 1 as well where the encoder was refused memory
            1 if self.errors.minimum == 0 => {
                let errors = Errors {
                    text: "the KV cache has no room for the tokens".to_owned(),
                    ..self.errors
                };
                device.refused(Code::ContextFull, errors)
            }
            code => {
                let otherwise = format!("llama.cpp failed with code {code}");
                device.refused(Code::Internal, self.errors.or(&otherwise))
            }
        }
    }
}

impl Activity {
    /// Submits passes, which end early when the session is cancelled, and, if they may be repeated, when memory is wanted.
    fn pass(&self, may_be_repeated: bool, evaluate: impl FnOnce() -> i32) -> Result<(), Ended> {
        let (code, errors) = with_errors(|| watching(&self.stop, may_be_repeated, evaluate));
        match code {
            0 => Ok(()),
            code => Err(Ended { code, errors }),
        }
    }
}
