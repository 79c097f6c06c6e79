//! git and Mercurial.

use super::{lab, script};

/// 2,000 files in 40 directories, with sizes from a few bytes to some kilobytes, no two alike.
const FILES: &str = r#"
mkdir -p $(seq -f 'src/d%g/sub' 40)
awk 'BEGIN {
  srand(1)
  for (d = 1; d <= 40; d++) for (f = 1; f <= 50; f++) {
    file = "src/d" d "/sub/f" f ".txt"
    for (line = 0; line < d * f / 16 + 1; line++) print d, f, line, rand(), rand(), rand() > file
    close(file)
  }
}'
test "$(find src -type f | wc -l)" = 2000
"#;

#[test]
fn git_commits_two_thousand_files_and_clones() {
    let lab = lab("git");
    let script = |app, text: &str| script(&lab, app, text);
    script(
        "one",
        &format!(
            "git init -q -b main repo; cd repo; git config user.name A; git config user.email a@example.org
             {FILES}
             git add .; git commit -q -m 'two thousand files'
             test -z \"$(git status --porcelain)\"
             for n in $(seq 5); do echo $n >> src/d1/sub/f1.txt; git commit -q -am \"change $n\"; done
             git mv src/d2 src/moved; git rm -q -r src/d3; git commit -q -m 'move and remove'"
        ),
    );
    let fsck = script("one", "cd repo; git gc --quiet --prune=now; git fsck --full --strict 2>&1");
    assert!(!fsck.contains("error") && !fsck.contains("missing") && !fsck.contains("dangling"), "{fsck}");
    assert_eq!(script("one", "cd repo; git log --oneline | wc -l; git ls-files | wc -l"), "7\n1950\n");
    assert_eq!(
        script("one", "cd repo; git count-objects -v | grep -E '^(count|packs|garbage):'"),
        "count: 0\npacks: 1\ngarbage: 0\n"
    );

    // On the mount, and out of it by the other guest.
    script("one", "git clone -q repo clone; git -C clone fsck --full --strict");
    script("one", "diff -r --exclude .git repo clone");
    script(
        "two",
        "git config --global safe.directory '*'; git clone -q --no-local repo /tmp/git-clone-in-guest; diff -r --exclude .git repo /tmp/git-clone-in-guest",
    );
    script("two", "cd repo; test -z \"$(git status --porcelain)\"; git branch topic; git switch -q topic");
    assert_eq!(script("one", "git -C repo branch --show-current"), "topic\n");
}

#[test]
fn mercurial_commits_clones_and_verifies() {
    let lab = lab("hg");
    script(
        &lab,
        "one",
        "export HGUSER='A <a@example.org>'
         hg init repo; cd repo
         for f in $(seq 300); do mkdir -p d$((f % 20)); seq $f > d$((f % 20))/f$f; done
         hg commit -q -A -m first
         for n in 1 2 3; do echo $n >> d1/f1; hg commit -q -m \"change $n\"; done
         hg rename -q d2/f2 renamed; hg remove -q d3/f3; hg commit -q -m 'rename and remove'
         test -z \"$(hg status)\"",
    );
    let verify = script(&lab, "one", "cd repo; hg verify 2>&1");
    assert!(verify.contains("checked 5 changesets") && !verify.contains("integrity errors"), "{verify}");
    script(
        &lab,
        "one",
        "hg clone -q repo clone; hg clone -q --pull repo /tmp/hg-clone-in-guest; cd clone; hg verify -q; test $(hg files | wc -l) = 299",
    );
    script(
        &lab,
        "one",
        "diff -r --exclude .hg repo clone; diff -r --exclude .hg repo /tmp/hg-clone-in-guest",
    );
    script(
        &lab,
        "two",
        "hg clone -q --pull repo /tmp/hg-clone-in-guest; hg -R /tmp/hg-clone-in-guest verify -q; diff -r --exclude .hg repo /tmp/hg-clone-in-guest",
    );
}
