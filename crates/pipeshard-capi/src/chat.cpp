extern "C" int pipeshard_chat_stub(void) { return 0; }
