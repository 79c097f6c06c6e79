//! The story itself, a chapter a function.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use strongroom_tests::lab::{GATEWAY_ADDRESS, Lab};

use crate::teller::{Guest, Teller};

const MAIL: Guest = Guest::App("mail");
const EDITOR: Guest = Guest::App("editor");

/// Only a guard against hanging for ever.
const HANG_GUARD: Duration = Duration::from_secs(60);

pub fn tell(teller: &Teller, lab: &Lab) -> Result<()> {
    grant(teller, lab)?;
    mount(teller, lab)?;
    work(teller, lab)?;
    look_around(teller, lab)?;
    steal(teller, lab)?;
    revoke_and_reissue(teller, lab)
}

fn grant(teller: &Teller, lab: &Lab) -> Result<()> {
    teller.title("1. Grant: the policy is the ceiling, the contract is signed for one key");
    teller.run(lab, Guest::Base, "/etc/strongroom", "cat policy.d/mail.toml")?.good()?;
    for app in ["mail", "editor"] {
        let guest = if app == "mail" { MAIL } else { EDITOR };
        teller.say(&format!("The `{app}` guest makes its key; the private half never leaves it."));
        let made = teller
            .run(lab, guest, "/etc/strongroom", "contract keygen --out holder.key")?
            .good()?
            .says("ed25519:")?;
        let key = made
            .text
            .split_whitespace()
            .find(|word| word.starts_with("ed25519:"))
            .context("`contract keygen` printed no key")?
            .to_owned();
        if app == "mail" {
            teller.say("What the policy does not allow is not granted:");
            teller
                .run(
                    lab,
                    Guest::Base,
                    "/root",
                    &format!("contract grant mail --holder {key} --path users/bob --out mail.contract"),
                )?
                .refused("users/bob")?;
        }
        teller
            .run(
                lab,
                Guest::Base,
                "/root",
                &format!("contract grant {app} --holder {key} --out {app}.contract"),
            )?
            .good()?;
        // The contract is no secret: any way of carrying it will do. Here it goes through the host.
        let contract = lab.base(["cat", &format!("/root/{app}.contract")]).run()?;
        fs::write(lab.etc(app).join(format!("{app}.contract")), contract)
            .context("cannot carry the contract over")?;
    }
    Ok(())
}

fn mount(teller: &Teller, lab: &Lab) -> Result<()> {
    teller.title("2. Mount: just what is granted appears");
    teller.say("The contract file was carried over to its guest; it is no secret.");
    teller.run(lab, MAIL, "/etc/strongroom", "head -n 15 mail.contract")?.good()?;
    for (guest, app) in [(MAIL, "mail"), (EDITOR, "editor")] {
        let command = format!(
            "mount -t strongroom /etc/strongroom/{app}.contract /mnt -o key=/etc/strongroom/holder.key,gateway={GATEWAY_ADDRESS}"
        );
        teller.run(lab, guest, "/", &command)?.good()?;
    }
    teller
        .run(lab, MAIL, "/mnt", "find . -type f")?
        .good()?
        .says("./Mail/inbox/cur/1.eml")?
        .says("./shared/minutes.txt")?
        .hides("Documents")?
        .hides("bob")?;
    teller
        .run(lab, EDITOR, "/mnt", "find . -type f")?
        .good()?
        .says("./Documents/letter.txt")?
        .hides("Mail")?
        .hides("bob")?;
    Ok(())
}

fn work(teller: &Teller, lab: &Lab) -> Result<()> {
    teller.title("3. Work: git in one guest, an editor's save in the other");
    teller
        .run(
            lab,
            MAIL,
            "/mnt/Mail",
            "git init -q -b main && git config user.name Alice && git config user.email alice@example.org && git add . && git commit -q -m 'My mail' && git log --stat --oneline",
        )?
        .good()?
        .says("inbox/cur/1.eml")?;
    teller.run(lab, MAIL, "/mnt/Mail", "git fsck --strict && git status --short && du -sh .git")?.good()?;
    teller.say("An editor writes a new file, makes it durable, and puts it in place of the old one:");
    teller
        .run(
            lab,
            EDITOR,
            "/mnt/Documents",
            "cp letter.txt .letter.new && echo 'We write to you about the lease.' >> .letter.new && sync .letter.new && mv .letter.new letter.txt && cat letter.txt",
        )?
        .good()?
        .says("about the lease")?;
    teller.say("The bytes are in the storage guest, and nowhere else:");
    teller
        .run(
            lab,
            Guest::Storage,
            "/srv/strongroom/data",
            "ls -l users/alice/Documents && tail -n 1 users/alice/Documents/letter.txt",
        )?
        .good()?
        .says("about the lease")?
        .hides(".letter.new")?;
    Ok(())
}

fn look_around(teller: &Teller, lab: &Lab) -> Result<()> {
    teller.title("4. What a guest cannot do, even as its root");
    teller.run(lab, EDITOR, "/mnt", "ls; cat Mail/inbox/cur/1.eml")?.refused("No such file or directory")?;
    teller.run(lab, MAIL, "/mnt", "echo changed >> shared/minutes.txt")?.refused("Permission denied")?;
    teller.say("`Photos` is append-only for `mail`: new photos may come, old ones stay as they are.");
    teller
        .run(lab, MAIL, "/mnt/Photos", "head -c 100000 /dev/urandom > new.jpg && ls -l new.jpg")?
        .good()?
        .says("100000")?;
    teller.run(lab, MAIL, "/mnt/Photos", "truncate -s 0 2026/README.txt")?.refused("Permission denied")?;
    teller.run(lab, MAIL, "/mnt/Photos", "rm 2026/README.txt")?.refused("Permission denied")?;
    teller.say("Bob's diary is in the storage guest; no app guest has a name for it.");
    teller
        .run(lab, Guest::Storage, "/srv/strongroom/data", "find . -name 'diary*'")?
        .good()?
        .says("diary.txt")?;
    teller
        .run(lab, MAIL, "/", "find / -xdev -name 'diary*'; find /mnt -name 'diary*'; ls /mnt/users")?
        .refused("No such file")?
        .hides("diary")?;
    Ok(())
}

fn steal(teller: &Teller, lab: &Lab) -> Result<()> {
    teller.title("5. A stolen contract is useless");
    teller.say("An attacker in the `editor` guest has got hold of the mail contract, and tries it with the key it has.");
    let stolen = fs::read(lab.etc("mail").join("mail.contract")).context("cannot steal the contract")?;
    fs::write(lab.etc("editor").join("stolen.contract"), stolen)?;
    let command = format!(
        "mkdir /tmp/loot; mount -t strongroom stolen.contract /tmp/loot -o key=holder.key,gateway={GATEWAY_ADDRESS}"
    );
    teller.run(lab, EDITOR, "/etc/strongroom", &command)?.refused("holder")?;
    teller.run(lab, EDITOR, "/tmp", "ls -A loot | wc -l")?.good()?.says("0")?;
    Ok(())
}

fn revoke_and_reissue(teller: &Teller, lab: &Lab) -> Result<()> {
    teller.title("6. Revoke: a running copy is cut within milliseconds");
    let mounted = mount_id(lab)?;
    let copy = teller.begin(lab, MAIL, "/mnt/Mail", "dd if=/dev/zero of=big bs=64k count=1000000")?;
    let big = lab.data().join("users/alice/Mail/big");
    wait_until("the copy has written 8 MiB", || Ok(size(&big)? > 8 << 20))?;
    teller
        .run(lab, Guest::Base, "/root", "contract revoke mail --why 'opened an attachment'")?
        .good()?
        .says("ms from command to fence")?;
    let fenced = size(&big)?;
    teller.finish(copy)?.refused("Permission denied")?;
    ensure!(size(&big)? == fenced, "the copy went on after the fence");
    teller.say(&format!("The copy stood at {fenced} bytes when the fence held, and stands there still."));
    teller.run(lab, MAIL, "/", "ls /mnt")?.refused("Permission denied")?;
    teller.say("The other guest goes on as if nothing had happened:");
    teller
        .run(lab, EDITOR, "/mnt/Documents", "echo 'Yours sincerely' >> letter.txt && tail -n 1 letter.txt")?
        .good()?;

    teller.title("7. Reissue: the same mount works again");
    teller.run(lab, Guest::Base, "/root", "contract reissue mail")?.good()?.says("generation 2")?;
    wait_until("the mount has its new contract", || {
        Ok(lab.app("mail", ["ls", "/mnt"]).cwd("/").output()?.status.success())
    })?;
    teller
        .run(lab, MAIL, "/mnt/Mail", "rm big && git status --short && git log --oneline")?
        .good()?
        .says("My mail")?;
    ensure!(mount_id(lab)? == mounted, "the mount is another one than before");
    teller.say("No remount: it is the mount of chapter 2.");
    teller.run(lab, Guest::Base, "/root", "contract sessions")?.good()?.says("mail")?;
    Ok(())
}

/// What tells a mount from one made later: its line in the mount table, with its device number.
fn mount_id(lab: &Lab) -> Result<String> {
    let table = lab.app("mail", ["cat", "/proc/self/mountinfo"]).cwd("/").run()?;
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some("/mnt"));
    line.map(str::to_owned).context("`mail` has nothing mounted on /mnt")
}

fn size(path: &Path) -> Result<u64> {
    match fs::metadata(path) {
        Ok(found) => Ok(found.len()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("cannot look at `{}`", path.display())),
    }
}

fn wait_until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    while !holds()? {
        if begun.elapsed() > HANG_GUARD {
            bail!("waited {} s in vain until {what}", HANG_GUARD.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
