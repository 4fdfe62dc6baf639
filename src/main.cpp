#include "trainer/app/app.hpp"

int main(int argc, char** argv) { return trainer::app::run(argc, argv); }
