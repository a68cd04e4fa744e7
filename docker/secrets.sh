#!/bin/sh
# Random secrets for compose.yaml, made once; what is there is left alone:
#   docker/secrets.sh [FOLDER]      default: docker/secrets
# Nobody but you can enter the folder. The files in it can be read by all, because each is mounted
# into containers whose users have other numbers than you.
set -eu
folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
chmod 700 "$folder"

random() { # 32 letters and digits: 190 bits
    LC_ALL=C tr -dc 'A-Za-z0-9' </dev/urandom | head -c 32
}

write() { # NAME: standard input becomes that file, whole or not at all
    cat >"$folder/.$1.new"
    chmod 644 "$folder/.$1.new"
    mv "$folder/.$1.new" "$folder/$1"
    echo "$folder/$1: made"
}

[ -e "$folder/database_password" ] || random | write database_password
[ -e "$folder/api_auth" ] || echo "admin:$(random)" | write api_auth

# The store's own list of identities is made anew from the keys that the flows use, so that both
# files always agree.
if [ ! -e "$folder/s3_credentials" ]; then
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' \
        "$(random)" "$(random)" | write s3_credentials
    rm -f "$folder/s3_identities.json"
fi
if [ ! -e "$folder/s3_identities.json" ]; then
    field() { sed -n "s/^$1 *= *//p" "$folder/s3_credentials" | head -n 1; }
    printf '{"identities": [{"name": "focusdpo", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}\n' \
        "$(field aws_access_key_id)" "$(field aws_secret_access_key)" | write s3_identities.json
fi
