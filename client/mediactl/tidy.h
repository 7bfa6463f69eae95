#pragma once
// Replies made fit for a terminal.
#include <protobuf-c/protobuf-c.h>

// In all texts of the message and what it holds, in place: '?' for control characters.
void ctl_tidy(ProtobufCMessage *m); // NULL does nothing
void ctl_tidy_text(char *s);        // of one; NULL does nothing
