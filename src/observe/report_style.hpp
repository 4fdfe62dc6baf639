// How a run's page looks.
#pragma once

namespace trainer::observe {

/// CSS. Colours are those of Okabe and Ito, told apart with every kind of colour blindness; F, I and W differ in
/// brightness too. Dark where the reader's system is.
extern const char* const kReportStyle;

}  // namespace trainer::observe
