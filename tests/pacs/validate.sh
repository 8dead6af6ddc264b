#!/usr/bin/env bash
# validate.sh TOOL FILE: one independent validator's verdict on one report. Exit 0 fine, 1 not (its words on stdout), 77
# the tool is not installed. No Error of dciodvfy is tolerated; of its warnings those about DeviceUID, which is newer.
set -u
tool=$1 file=$2
case $tool in
dciodvfy)
    command -v dciodvfy >/dev/null || exit 77
    out=$(dciodvfy "$file" 2>&1)
    bad=$(grep -E '^(Error|Warning)' <<<"$out" | grep -v 'DeviceUID')
    ;;
dsrdump)
    command -v dsrdump >/dev/null || exit 77
    bad=$(dsrdump "$file" 2>&1 >/dev/null | grep -E '^[WEF]:')
    ;;
pixelmed)
    jar=/usr/share/java/pixelmed.jar
    { command -v java >/dev/null && [ -f $jar ]; } || exit 77
    # Java's default limits refuse the long rules; the classpath holds what the jar needs.
    out=$(java -Djdk.xml.xpathExprGrpLimit=0 -Djdk.xml.xpathExprOpLimit=0 -Djdk.xml.xpathTotalOpLimit=0 \
        -cp "$jar:/usr/share/java/*" com.pixelmed.validate.DicomSRValidator "$file" 2>&1) || { echo "$out"; exit 1; }
    grep -q 'Root Template Validation Complete' <<<"$out" || { echo "$out"; exit 1; }
    bad=$(grep -E 'Error' <<<"$out")
    ;;
*) exit 64 ;;
esac
[ -z "$bad" ] || { echo "$bad"; exit 1; }
