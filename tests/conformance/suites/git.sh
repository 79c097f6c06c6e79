# A history of many files in git: written, repacked, cloned, checked.

suite_git() { # DIRECTORY
  local repo=$1/repo
  need git "install the package git"
  (
    set -e
    export HOME=$work GIT_CONFIG_NOSYSTEM=1 GIT_AUTHOR_NAME=suite GIT_AUTHOR_EMAIL=suite@localhost
    export GIT_COMMITTER_NAME=suite GIT_COMMITTER_EMAIL=suite@localhost
    git init -q "$repo"; cd "$repo"
    # Ten commits that each add a tenth and change some of what was there.
    for commit in 0 1 2 3 4 5 6 7 8 9; do
      awk -v files="$files" -v commit="$commit" 'BEGIN {
        for (n = commit * files / 10; n < (commit + 1) * files / 10; n++) {
          dir = sprintf("d%d/e%d", n % 20, n % 7); if (!(dir in made)) { system("mkdir -p " dir); made[dir] = 1 }
          name = dir "/f" n; for (line = 0; line < 1 + n % 60; line++) print "line " line " of file " n > name; close(name)
        }
        for (n = 0; n < commit * files / 10; n += 17) { name = sprintf("d%d/e%d/f%d", n % 20, n % 7, n); print "changed " commit >> name; close(name) }
      }'
      git add -A; git commit -q -m "commit $commit"
    done
    git repack -q -a -d
    git fsck --full --strict
    [ -z "$(git status --porcelain)" ]
    git clone -q --no-local "$repo" "$1/clone"
    git -C "$1/clone" fsck --full --strict
    [ "$(git -C "$1/clone" rev-list --count HEAD)" = 10 ]
    diff -r --exclude=.git "$repo" "$1/clone"
  ) > "$work/git.out" 2>&1 || { echo "git: FAILED"; tail -n 10 "$work/git.out"; return 1; }
  echo "git: a history of $files files passed fsck, cloned and compared"
}
