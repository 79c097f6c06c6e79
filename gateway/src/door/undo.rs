//! The admin door's requests about the undo log.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use strongroom_contracts::{Application, ContractId, DataPath};
use strongroom_protocol::admin::{
    AdminAnswer, AdminFailure, AdminRequest, BlastInfo, HistoryInfo, UndoItem, UndoProgress, UndoRequest,
    UndoVerdict,
};
use strongroom_protocol::codec;
use strongroom_protocol::frame::MAX_DATA;

use crate::gateway::Gateway;
use crate::undo::{BlastItem, FileAtError, Filter, HistoryItem, Item, OWN_NAME, UndoError, Verdict};

/// Entries looked at for one page.
const PAGE: usize = 4096;

/// What a connection looks at page by page, so that it need not be found again for each page.
#[derive(Default)]
pub(super) struct Past {
    file: Option<((DataPath, u64), OwnedFd, bool)>,
    blast: Option<((Application, u64), Vec<BlastItem>)>,
    history: Option<(DataPath, Vec<HistoryItem>)>,
}

type Told = (AdminAnswer, Vec<u8>);

/// Answers one.
pub(super) fn answer(gateway: &Arc<Gateway>, request: AdminRequest, past: &mut Past) -> Told {
    let told = match request {
        AdminRequest::Undo(request) => undo(gateway, request),
        AdminRequest::UndoProgress { run, from } => progress(gateway, run, from),
        AdminRequest::Blast { application, since, from } => blast(gateway, past, application, since, from),
        AdminRequest::History { path, from } => history(gateway, past, path, from),
        AdminRequest::FileAt { path, at, offset } => file_at(gateway, past, path, at, offset),
        other => Err((AdminFailure::Refused, format!("{other:?} is not about the undo log"))),
    };
    told.unwrap_or_else(|(kind, text)| (AdminAnswer::Failed { kind, text }, vec![]))
}

type Answer = Result<Told, (AdminFailure, String)>;

fn failed(error: UndoError) -> (AdminFailure, String) {
    let kind = match error {
        UndoError::Unknown(_) | UndoError::Expired { .. } => AdminFailure::NotFound,
        UndoError::Off => AdminFailure::Refused,
        UndoError::TooMany | UndoError::Io(_) => AdminFailure::Failed,
    };
    (kind, error.to_string())
}

fn undo(gateway: &Arc<Gateway>, request: UndoRequest) -> Answer {
    let filter = Filter {
        application: match request.undo {
            Some(_) => OWN_NAME.to_owned(),
            None => request.application.as_str().to_owned(),
        },
        contract: request.undo.or(request.contract).map(|id| *id.as_bytes()),
        below: request.below.filter(|_| request.undo.is_none()),
        since_us: request.since.saturating_mul(1_000_000),
        until_us: u64::MAX,
        path: request.path.map(|path| path.as_str().as_bytes().to_vec()),
    };
    let run = gateway.undo(filter, request.dry_run).map_err(failed)?;
    Ok((AdminAnswer::UndoBegun { run }, vec![]))
}

fn progress(gateway: &Gateway, run: ContractId, from: u64) -> Answer {
    let start = usize::try_from(from).unwrap_or(usize::MAX);
    let none = || (AdminFailure::NotFound, format!("there is no undo {run} in this process of the gateway"));
    let (progress, items) = gateway.engine.undo_progress(run, start, PAGE).ok_or_else(none)?;
    let answer = AdminAnswer::UndoProgress(UndoProgress {
        done: progress.done,
        total: progress.total,
        finished: progress.finished,
        failed: progress.failed.map(|error| error.to_string()),
        expired: progress.expired,
        since: progress.since_us / 1_000_000,
        items: progress.items,
    });
    let items: Vec<UndoItem> = items.into_iter().map(item).collect();
    Ok((answer, page(&items)?))
}

fn item(item: Item) -> UndoItem {
    let Item { path, verdict, beside, why } = item;
    let verdict = match verdict {
        Verdict::Restored => UndoVerdict::Restored,
        Verdict::Kept => UndoVerdict::Kept,
        Verdict::Expired => UndoVerdict::Expired,
        Verdict::Failed => UndoVerdict::Failed,
    };
    UndoItem { path, verdict, beside, why }
}

/// As many as fit in a frame.
fn page<T: bincode::Encode + Clone>(list: &[T]) -> Result<Vec<u8>, (AdminFailure, String)> {
    let mut length = list.len();
    loop {
        let part = list.get(..length).unwrap_or_default().to_vec();
        match codec::encode_list(&part) {
            Ok(data) => return Ok(data),
            Err(error) if length == 0 => return Err((AdminFailure::Failed, error.to_string())),
            Err(_) => length /= 2,
        }
    }
}

fn some<T>(list: &[T], from: u64) -> &[T] {
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(list.len());
    list.get(from..list.len().min(from.saturating_add(PAGE))).unwrap_or_default()
}

fn blast(gateway: &Gateway, past: &mut Past, application: Application, since: u64, from: u64) -> Answer {
    let key = (application, since);
    if from == 0 || past.blast.as_ref().is_none_or(|(other, _)| *other != key) {
        let list = gateway.engine.blast(key.0.as_str(), since.saturating_mul(1_000_000)).map_err(failed)?;
        past.blast = Some((key, list));
    }
    let list = past.blast.as_ref().map(|(_, list)| list.as_slice()).unwrap_or_default();
    let told: Vec<BlastInfo> = some(list, from)
        .iter()
        .map(|item| BlastInfo {
            path: item.path.clone(),
            what: item.what.clone(),
            last: item.last_us / 1_000_000,
            readers: in_seconds(&item.readers),
            sent_ahead: in_seconds(&item.sent_ahead),
        })
        .collect();
    Ok((AdminAnswer::Blast { total: list.len() as u64 }, page(&told)?))
}

fn in_seconds(list: &[(String, u64)]) -> Vec<(String, u64)> {
    list.iter().map(|(name, at_us)| (name.clone(), at_us / 1_000_000)).collect()
}

fn history(gateway: &Gateway, past: &mut Past, path: DataPath, from: u64) -> Answer {
    if from == 0 || past.history.as_ref().is_none_or(|(other, _)| *other != path) {
        let list = gateway.engine.history(path.as_str().as_bytes()).map_err(failed)?;
        past.history = Some((path, list));
    }
    let list = past.history.as_ref().map(|(_, list)| list.as_slice()).unwrap_or_default();
    let told: Vec<HistoryInfo> = some(list, from)
        .iter()
        .map(|item| HistoryInfo {
            at_us: item.at_us,
            application: item.application.clone(),
            contract: item.contract.map(ContractId::from_bytes),
            what: item.what.clone(),
            kept: item.kept,
        })
        .collect();
    Ok((AdminAnswer::History { total: list.len() as u64 }, page(&told)?))
}

fn file_at(gateway: &Gateway, past: &mut Past, path: DataPath, at: u64, offset: u64) -> Answer {
    let key = (path, at);
    if offset == 0 || past.file.as_ref().is_none_or(|(other, ..)| *other != key) {
        // To the end of the second.
        let at_us = at.saturating_mul(1_000_000).saturating_add(999_999);
        let (file, whole) =
            gateway.engine.file_at(key.0.as_str().as_bytes(), at_us).map_err(|error| match error {
                FileAtError::Log(error) => failed(error),
                FileAtError::NotThere | FileAtError::NoFile => (AdminFailure::NotFound, error.to_string()),
                FileAtError::Io(_) => (AdminFailure::Failed, error.to_string()),
            })?;
        past.file = Some((key, file, whole));
    }
    let io =
        |error: std::io::Error| (AdminFailure::Failed, format!("the old version cannot be read: {error}"));
    let Some((_, file, whole)) = &past.file else {
        return Ok((AdminAnswer::FileAt { size: 0, whole: true }, vec![]));
    };
    let size = rustix::fs::fstat(file).map_err(|errno| io(errno.into()))?.st_size;
    let mut data = vec![0; MAX_DATA];
    let count = rustix::io::pread(file, &mut *data, offset).map_err(|errno| io(errno.into()))?;
    data.truncate(count);
    Ok((AdminAnswer::FileAt { size: u64::try_from(size).unwrap_or(0), whole: *whole }, data))
}
