//! rsync and tar: everything about a file arrives, and is seen to have arrived.

use super::{lab, script};

/// Every kind of entry that a grant may hold, with odd names, modes, times and sizes.
const TREE: &str = r#"
mkdir -p tree/deep/$(printf 'x%.0s' $(seq 200))/end tree/empty
head -c 3000000 /dev/urandom > tree/large
head -c 1 /dev/urandom > tree/small
: > tree/nothing
truncate -s 5M tree/hole; printf tail >> tree/hole
printf 'a\0b\nc' > $'tree/odd \n\t"name" \xc3\xa4\xff'
for n in $(seq 200); do echo $n > tree/deep/f$n; done
ln tree/large tree/deep/hard; ln tree/small tree/deep/hard2
ln -s ../large tree/deep/link; ln -s /nowhere/at/all tree/dangling
chmod 600 tree/small; chmod 444 tree/deep/f1; chmod 755 tree/deep/f2; chmod 700 tree/empty
touch -d '2001-02-03 04:05:06.789012345' tree/small; touch -h -d '1999-12-31 23:59:59' tree/dangling
touch -d '2030-01-01 00:00:00.5' tree/empty
"#;

#[test]
fn rsync_copies_everything_once() {
    let lab = lab("rsync");
    script(&lab, "one", TREE);
    script(
        &lab,
        "one",
        "setfattr -n user.colour -v green tree/small; setfattr -n user.empty tree/deep; setfattr -n user.long -v $(printf 'v%.0s' $(seq 1000)) tree/large",
    );
    script(&lab, "one", "rsync -aHX tree/ copy/");
    let again = script(&lab, "one", "rsync -aHX --itemize-changes tree/ copy/");
    assert_eq!(again, "", "the second run found something to do");
    let checked = script(&lab, "one", "rsync -aHX --checksum --itemize-changes --delete tree/ copy/");
    assert_eq!(checked, "", "the bytes differ");
    assert_eq!(script(&lab, "one", "diff -r --no-dereference tree copy"), "");
    assert_eq!(
        script(&lab, "one", "stat -c '%h %a %y' copy/small copy/deep/hard2 | uniq | wc -l"),
        "1\n",
        "hard links stay links"
    );
    assert_eq!(script(&lab, "one", "stat -c '%h' copy/large"), "2\n");
    assert_eq!(
        script(&lab, "one", "getfattr -d --absolute-names copy/small copy/deep | grep user"),
        "user.colour=\"green\"\nuser.empty=\"\"\n"
    );
    // Between the mount and another file system, there and back; not every tmpfs has user xattrs (Linux 6.6).
    script(&lab, "one", "rsync -aH tree/ /tmp/rsync-out-in-guest/; rsync -aH /tmp/rsync-out-in-guest/ back/");
    assert_eq!(script(&lab, "one", "rsync -aH --checksum --itemize-changes --delete tree/ back/"), "");
    // The other guest sees the same.
    assert_eq!(
        script(
            &lab,
            "two",
            "rsync -aHX --itemize-changes tree/ copy/; rsync -a copy/ /tmp/rsync-got-in-guest/; rsync -a --checksum --itemize-changes copy/ /tmp/rsync-got-in-guest/"
        ),
        ""
    );
}

#[test]
fn a_tar_archive_comes_back_byte_for_byte() {
    let lab = lab("tar");
    // Times that a read changes are left out; everything else is in the archive.
    let pack = "tar --sort=name --format=posix --pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime -c -f";
    script(&lab, "one", &format!("cd /tmp; {TREE} {pack} first.tar tree"));
    script(
        &lab,
        "one",
        &format!(
            "tar -x -p -f /tmp/first.tar; {pack} /tmp/second.tar tree; cmp /tmp/first.tar /tmp/second.tar"
        ),
    );
    // The archive itself lives on the mount too, and the other guest packs the same one.
    script(
        &lab,
        "one",
        "cp /tmp/first.tar archive.tar; cmp /tmp/first.tar archive.tar; tar -d -f archive.tar",
    );
    script(&lab, "two", &format!("{pack} /tmp/third.tar tree; cmp archive.tar /tmp/third.tar"));
}
