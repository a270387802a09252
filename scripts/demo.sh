#!/bin/sh
# Restores a photo from a fresh clone: sets everything up, then restores PHOTO (or a demo photo) and makes a
# before/after picture.
#
#   sh scripts/demo.sh [PHOTO]
set -eu
. "$(dirname "$0")/setup.sh"

setup ""
out="$root/demo"
mkdir -p "$out"
if [ $# -eq 0 ]; then
    photo="$out/astronaut-aged.png"
    "$venv/bin/python" "$root/scripts/demo_photo.py" "$photo"
else
    photo=$1
fi
name=$(basename -- "$photo")
stem=${name%.*}
suffix=${name##*.}
case $(printf %s "$suffix" | tr '[:upper:]' '[:lower:]') in
    jpg | jpeg | jpe | jfif | png | tif | tiff | webp | bmp | dib) ;;
    *) suffix=png ;; # a GIF, say, which is read and not written
esac
result="$out/$stem.facefix.$suffix"
"$venv/bin/facefix" restore --overwrite --out "$result" --compare "$out/$stem.before-after.jpg" -- "$photo"
echo
echo "restored:      $result"
echo "before/after:  $out/$stem.before-after.jpg"
