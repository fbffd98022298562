#!/bin/sh
# fill.sh FOLDER VERSION PROJECT PYTHON EXTRAS TARGET_PYTHON MACHINE: one archive of wheels.
# Versions are those of requirements.lock, where the project is a checkout: what was tested.
set -eu
folder=$1 version=$2 project=$3 python=$4 extras=$5 target=$6 machine=$7
name="edgefleet-$version-$(echo "$extras" | tr , +)-$target-$machine"
[ ! -e "$folder/$name.tar" ] || exit 0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$folder" "$work/wheels"

case $project in
  *.whl) cp "$project" "$work/wheels/" ;;
  *) "$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheels" "$project" ;;
esac
wheel=$(ls "$work"/wheels/edgefleet-"$version"-*.whl)  # fails where the project is another version

: > "$work/constraints"
[ ! -e "$project/requirements.lock" ] \
  || sed -nE 's/^([A-Za-z0-9][^\\]*[^ \\]) *\\?$/\1/p' "$project/requirements.lock" > "$work/constraints"

platforms=""
for glibc in 2_34 2_31 2_28 2_27 2_17; do platforms="$platforms --platform manylinux_${glibc}_$machine"; done
# shellcheck disable=SC2086  # several options
"$python" -m pip download --quiet --only-binary=:all: --dest "$work/wheels" \
  --constraint "$work/constraints" --find-links "$work/wheels" \
  --python-version "$target" --implementation cp \
  $platforms --platform "manylinux2014_$machine" --platform "linux_$machine" \
  "$wheel[$extras]"

tar --create --file "$work/archive" --directory "$work/wheels" --owner=0 --group=0 .
mv "$work/archive" "$folder/$name.tar"
echo "made $name.tar"
