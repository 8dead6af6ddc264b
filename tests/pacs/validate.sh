#!/usr/bin/env bash
# validate.sh TOOL FILE: one independent validator's verdict on one report. Exit 0 fine, 1 not (its words on stdout), 77
# the tool is not installed. Anything it says counts, but for what is known not to be the report's fault:
#   dciodvfy   DeviceUID, which is newer than the tool and makes it say "Extended"; private coding schemes, which cannot be
#              in its list; what a DICOMDIR would need; a patient's name without a caret, which is copied as it is
#   dsrdump    its own VR checker knows no UTF-8, and says so of every UTF-8 file
#   pixelmed   TID 1501 row 12, which is newer than the tool
set -u
allowed='UI Device UID|Standard Extended SOP Class|Unrecognized defined term <99|Retired Person Name form|DICOMDIR'
tool=$1 file=$2
case $tool in
dciodvfy)
    command -v dciodvfy >/dev/null || exit 77
    out=$(dciodvfy "$file" 2>&1)
    bad=$(grep -E "^(Error|Warning)" <<<"$out" | grep -vE "$allowed")
    ;;
dsrdump)
    command -v dsrdump >/dev/null || exit 77
    bad=$(dsrdump "$file" 2>&1 >/dev/null | grep -E '^[WEF]:' |
        grep -v 'VR checker does not support this Specific Character Set: ISO_IR 192')
    ;;
pixelmed)
    jar=/usr/share/java/pixelmed.jar
    { command -v java >/dev/null && [ -f $jar ]; } || exit 77
    # Java's default limits refuse the long rules; the classpath holds what the jar needs.
    out=$(java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Djdk.xml.xpathExprGrpLimit=0 -Djdk.xml.xpathExprOpLimit=0 -Djdk.xml.xpathTotalOpLimit=0 \
        -cp "$jar:/usr/share/java/*" com.pixelmed.validate.DicomSRValidator "$file" 2>&1) || { echo "$out"; exit 1; }
    grep -q 'Root Template Validation Complete' <<<"$out" || { echo "$out"; exit 1; }
    bad=$(grep -E 'Error|Warning' <<<"$out" | grep -v 'TEXT (121106,DCM,"Comment"): Content Item not in template')
    ;;
*) exit 64 ;;
esac
[ -z "$bad" ] || { echo "$bad"; exit 1; }
