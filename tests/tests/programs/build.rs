//! A compiler and make, with the whole project on the mount.

use super::{lab, script};

/// Sixty sources with a header each depends on, a static library, and a program that adds up what they return.
const PROJECT: &str = r#"
mkdir project; cd project
echo '#define BASE 1' > base.h
for n in $(seq 60); do
  printf '#include "base.h"\nint f%d(void) { return BASE * %d; }\n' $n $n > f$n.c
done
{ echo '#include <stdio.h>'
  for n in $(seq 60); do echo "int f$n(void);"; done
  echo 'int main(void) { int sum = 0;'
  for n in $(seq 60); do echo "sum += f$n();"; done
  echo 'printf("%d\n", sum); return 0; }'; } > main.c
printf 'OBJECTS := $(patsubst %%.c,%%.o,$(wildcard f*.c))\nCFLAGS := -O1\nsum: main.o libf.a\n\t$(CC) -o $@ main.o libf.a\nlibf.a: $(OBJECTS)\n\t$(AR) rcs $@ $^\n$(OBJECTS): base.h\n' > Makefile
"#;

#[test]
fn a_project_builds_and_rebuilds_only_what_changed() {
    let lab = lab("build");
    script(&lab, "one", PROJECT);
    script(&lab, "one", "cd project; make -s -j4");
    assert_eq!(script(&lab, "one", "project/sum"), "1830\n");
    assert!(script(&lab, "one", "cd project; make").contains("up to date"), "make finds something to do");
    let one = script(&lab, "one", "cd project; sed -i 's/BASE \\* 7;/BASE * 107;/' f7.c; make");
    assert_eq!(one.lines().filter(|line| line.contains(" -c ")).count(), 1, "{one}");
    assert_eq!(script(&lab, "one", "project/sum"), "1930\n");
    let all = script(&lab, "one", "cd project; echo '#define BASE 2' > base.h; make -j4");
    assert_eq!(all.lines().filter(|line| line.contains(" -c ")).count(), 60, "{all}");
    // The other guest runs what this one built, and finds nothing to build.
    assert_eq!(script(&lab, "two", "project/sum"), "3860\n");
    assert!(script(&lab, "two", "cd project; make").contains("up to date"));
}
