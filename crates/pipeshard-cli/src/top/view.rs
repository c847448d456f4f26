//! Draws the screen.

use super::history::History;
use super::keys::HELP;
use super::look::{Look, State};
use super::screen::{Screen, Server};
use super::words::{bytes_per_second, classes, columns, count, per_second, percent};
use crate::plan::style::wrapped;
use pipeshard::report::Limits;
use pipeshard_model::size::ByteSize;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline, Wrap};
use ratatui::Frame;

/// Columns of the names at the left.
const NAME: u16 = 10;
/// The most servers that are listed at a time.
const LISTED: usize = 8;
const COLOURS: [Color; 6] = [
    Color::Green,
    Color::Blue,
    Color::Yellow,
    Color::Magenta,
    Color::Cyan,
    Color::Gray,
];

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const QUIET: Style = Style::new().add_modifier(Modifier::DIM);

fn colour(state: State) -> Style {
    BOLD.fg(match state {
        State::Awake => Color::Green,
        State::Asleep => Color::Blue,
        State::Loading => Color::Yellow,
        State::Locked | State::Unreachable => Color::Red,
    })
}

/// Draws all of it.
pub fn draw(frame: &mut Frame, screen: &Screen) {
    let listed = match screen.servers.len() {
        1 => 0,
        many => many.min(LISTED) + 1,
    };
    let areas = Layout::vertical([
        Constraint::Length(listed as u16),
        Constraint::Min(0),
        Constraint::Length(2),
        Constraint::Length(1),
    ]);
    let [list, detail, reply, help] = areas.areas(frame.area());
    draw_list(frame, list, screen);
    if let Some(server) = screen.servers.get(screen.selected) {
        draw_server(frame, detail, server);
        frame.render_widget(reply_of(server), reply);
    }
    let keys = HELP.iter().flat_map(|(key, means)| {
        [
            Span::styled(*key, BOLD),
            Span::styled(format!(" {means}   "), QUIET),
        ]
    });
    frame.render_widget(Line::from_iter(keys), help);
}

fn draw_list(frame: &mut Frame, area: Rect, screen: &Screen) {
    // the selected one is always among those listed
    let first = (screen.selected + 1).saturating_sub(LISTED);
    let lengths = screen
        .servers
        .iter()
        .map(|server| name_of(server).chars().count());
    let names = lengths.max().unwrap_or(0);
    let lines = screen
        .servers
        .iter()
        .enumerate()
        .skip(first)
        .take(LISTED)
        .map(|(number, server)| {
            let selected = number == screen.selected;
            let mark = if selected { "> " } else { "  " };
            let style = if selected { BOLD } else { Style::new() };
            let mut spans = vec![Span::styled(
                format!("{mark}{:<names$} ", name_of(server)),
                style,
            )];
            if let Some(look) = server.history.look() {
                spans.push(Span::styled(
                    format!("{:<12}", look.state.word()),
                    colour(look.state),
                ));
                if let Some(limits) = look.limits {
                    let held = format!(
                        "{} of {}",
                        ByteSize(limits.held_total),
                        ByteSize(limits.budget)
                    );
                    spans.push(Span::raw(format!("{held:<24}")));
                }
                if let Some(rates) = server.history.rates() {
                    spans.push(Span::raw(format!("{} tokens", per_second(rates.tokens))));
                }
            }
            Line::from(spans)
        });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), area);
}

/// The program, if it is known, and its address.
fn name_of(server: &Server) -> String {
    let program = server
        .history
        .look()
        .and_then(|look| look.program.as_deref());
    match program {
        Some(program) => format!("{program} ({})", server.url),
        None => server.url.to_string(),
    }
}

fn draw_server(frame: &mut Frame, area: Rect, server: &Server) {
    let Some(look) = server.history.look() else {
        frame.render_widget(format!("{}  is asked …", server.url), area);
        return;
    };
    let width = usize::from(area.width.saturating_sub(NAME));
    let mut lines = vec![Line::from(vec![
        Span::styled(format!("{}  ", name_of(server)), BOLD),
        Span::styled(look.state.word(), colour(look.state)),
        Span::styled(
            format!("  {}", look.device.as_deref().unwrap_or_default()),
            QUIET,
        ),
    ])];
    let across = usize::from(area.width);
    if let Some(reason) = &look.reason {
        lines.extend(wrapped(reason, across).into_iter().map(Line::from));
    }
    lines.push(Line::default());
    if let Some(limits) = &look.limits {
        memory(&mut lines, limits, width);
    }
    figures(&mut lines, look, &server.history);
    for remark in &look.remarks {
        let remark = wrapped(&format!("! {remark}"), across).into_iter();
        lines.extend(remark.map(|line| Line::styled(line, Style::new().fg(Color::Yellow))));
    }
    let curves = if look.limits.is_some() || look.counters.is_some() {
        6
    } else {
        0
    };
    let rows = u16::try_from(lines.len()).unwrap_or(u16::MAX);
    let [above, below] =
        Layout::vertical([Constraint::Length(rows), Constraint::Max(curves)]).areas(area);
    frame.render_widget(Paragraph::new(lines), above);
    let [held, tokens] = Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas(below);
    let most = look
        .limits
        .map(|limits| limits.budget.max(limits.held_total));
    draw_curve(frame, held, "held", &server.history.held(width), most);
    draw_curve(
        frame,
        tokens,
        "tokens/s",
        &server.history.tokens(width),
        None,
    );
}

fn named<'a>(name: &'a str, says: impl Into<Vec<Span<'a>>>) -> Line<'a> {
    let mut spans = vec![Span::styled(
        format!("{name:<width$}", width = usize::from(NAME)),
        QUIET,
    )];
    spans.extend(says.into());
    Line::from(spans)
}

fn memory(lines: &mut Vec<Line>, limits: &Limits, width: usize) {
    let all = limits
        .everything_resident
        .map_or_else(String::new, |bytes| {
            format!("   all weights resident {}", ByteSize(bytes))
        });
    let budget = format!("   minimum {}{all}", ByteSize(limits.minimum));
    lines.push(named(
        "budget",
        vec![
            Span::styled(ByteSize(limits.budget).to_string(), BOLD),
            Span::raw(budget),
        ],
    ));
    let percent = percent(limits.held_total, limits.budget)
        .map_or_else(String::new, |percent| format!(" ({percent} %)"));
    let held = format!(
        "{}{percent}   by the driver's figure {}",
        ByteSize(limits.held_total),
        ByteSize(limits.by_driver)
    );
    lines.push(named("held", vec![Span::raw(held)]));
    let classes = classes(&limits.held);
    let shares = columns(&limits.held, limits.budget, width.saturating_sub(2));
    let free = width.saturating_sub(2 + shares.iter().sum::<usize>());
    let mut bar = vec![Span::raw("[")];
    for (((_, mark, _), share), colour) in classes.iter().zip(shares).zip(COLOURS) {
        bar.push(Span::styled(
            mark.to_string().repeat(share),
            Style::new().fg(colour),
        ));
    }
    bar.push(Span::raw(format!("{}]", " ".repeat(free))));
    lines.push(named("", bar));
    let shown = classes
        .iter()
        .zip(COLOURS)
        .filter(|((_, _, bytes), _)| *bytes > 0);
    let mut legend: Vec<Span> = Vec::new();
    for ((name, mark, bytes), colour) in shown {
        let says = format!(" {name} {}   ", ByteSize(*bytes));
        let so_far: usize = legend.iter().map(Span::width).sum();
        if so_far + says.trim_end().len() + 1 > width {
            lines.push(named("", std::mem::take(&mut legend)));
        }
        legend.push(Span::styled(mark.to_string(), Style::new().fg(colour)));
        legend.push(Span::raw(says));
    }
    lines.push(named("", legend));
}

fn figures<'a>(lines: &mut Vec<Line<'a>>, look: &Look, history: &History) {
    let Some(counters) = look.counters else {
        return;
    };
    let rates = history.rates();
    let rate =
        |of: fn(f64) -> String, number: Option<f64>| number.map_or_else(|| "-".to_owned(), of);
    let tokens = format!(
        "about {}   prompts {}   requests {}",
        rate(per_second, rates.map(|r| r.tokens)),
        rate(per_second, rates.and_then(|r| r.prompt_tokens)),
        counters
            .requests
            .map_or_else(|| "-".to_owned(), |requests| count(requests as u64))
    );
    lines.push(named("tokens", vec![Span::raw(tokens)]));
    let link = format!(
        "{}   {} in all   stalls {} ({})",
        rate(bytes_per_second, rates.map(|r| r.link_bytes)),
        ByteSize(counters.link_bytes()),
        count(counters.stalls),
        rate(per_second, rates.map(|r| r.stalls))
    );
    lines.push(named("link", vec![Span::raw(link)]));
    if counters.errors > 0 {
        let errors = format!("{}: the server's log has them", count(counters.errors));
        lines.push(named(
            "errors",
            vec![Span::styled(errors, Style::new().fg(Color::Red))],
        ));
    }
}

fn draw_curve(frame: &mut Frame, area: Rect, name: &str, curve: &[u64], most: Option<u64>) {
    let [left, right] =
        Layout::horizontal([Constraint::Length(NAME), Constraint::Min(0)]).areas(area);
    frame.render_widget(Line::styled(name, QUIET), left);
    let mut line = Sparkline::default()
        .data(curve)
        .style(Style::new().fg(Color::Green));
    if let Some(most) = most {
        line = line.max(most.max(1));
    }
    frame.render_widget(line, right);
}

fn reply_of(server: &Server) -> Paragraph<'_> {
    let (text, style) = match (&server.reply, server.waiting) {
        (_, 1..) => ("asked …", QUIET),
        (Some(reply), _) if reply.done => (reply.text.as_str(), Style::new().fg(Color::Green)),
        (Some(reply), _) => (reply.text.as_str(), Style::new().fg(Color::Red)),
        (None, _) => ("", QUIET),
    };
    Paragraph::new(Line::styled(text, style)).wrap(Wrap { trim: true })
}
